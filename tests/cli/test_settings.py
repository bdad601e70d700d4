"""`glec-fast settings`, and the page that it writes."""

from __future__ import annotations

import pytest

from glec_fast.cli.main import main
from glec_fast.cli.settings import page
from support.places import REPOSITORY
from support.setting_values import SETTING_VALUES

PAGE = REPOSITORY / "docs" / "settings.md"


@pytest.mark.skipif(not PAGE.exists(), reason="a wheel has no documentation")
def test_the_page_is_fresh() -> None:
    assert PAGE.read_text() == page(), "run: glec-fast settings --markdown > docs/settings.md"


def test_it_lists_every_setting_within_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines if line and not line.startswith(" ")} == set(SETTING_VALUES)
    assert max(map(len, lines)) <= 80

"""Days of a certificate's times, against Python's own calendar."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glec_fast.tls.certificate import days_since_1970


@given(st.integers(0, 9999), st.integers(0, 13), st.integers(0, 32))
def test_every_day_of_the_calendar_and_no_other(year: int, month: int, day: int) -> None:
    try:
        expected = (dt.date(year, month, day) - dt.date(1970, 1, 1)).days
    except ValueError:
        with pytest.raises(ValueError, match=r"^$"):
            days_since_1970(year, month, day)
    else:
        assert days_since_1970(year, month, day) == expected


@pytest.mark.parametrize("year", [1, 4, 100, 400, 1900, 1970, 2000, 2023, 2024, 2100, 9999])
def test_the_ends_of_february(year: int) -> None:
    march = (dt.date(year, 3, 1) - dt.date(1970, 1, 1)).days
    assert days_since_1970(year, 3, 1) == march
    last = march - 1 - (dt.date(year, 2, 1) - dt.date(1970, 1, 1)).days + 1
    assert days_since_1970(year, 2, last) == march - 1
    with pytest.raises(ValueError, match=r"^$"):
        days_since_1970(year, 2, last + 1)

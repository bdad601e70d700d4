"""Queue files that were damaged, mixed up or written to by others: any opens or is set aside, and is then of use.

FUZZ_FILES says how many, FUZZ_SEED from which seed on (`make fuzz-files`).
"""

from __future__ import annotations

import logging
import os
import random
import sys
from collections import Counter
from contextlib import closing, suppress
from itertools import product
from pathlib import Path

import apsw
import pytest

from glec_fast.durable._table import QueueTable
from glec_fast.durable.store import Store
from support.queue_fuzz import COLUMNS, ODD, check, database, fill, look_beside, make, specimens

FILES = int(os.environ.get("FUZZ_FILES", "60"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
# A seal on what a later change of the fuzz itself might take away: each kind must come up.
KINDS = ("opened", "set aside", "rows carried over", "rows read", "rows unsendable")


def test_any_file_opens_or_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "glec_fast")
    taken = specimens(tmp_path / "taken")
    counts: Counter[str] = Counter()
    failures = []
    for seed in range(SEED, SEED + FILES):
        folder = tmp_path / str(seed)
        folder.mkdir()
        done = make(random.Random(seed), taken, folder)
        try:
            check(folder / "queue.db", counts)
        except Exception as error:
            failures.append(f"seed {seed} ({done}): {error!r}")
    sys.stderr.write("".join(f"\n{count:8} {name}" for name, count in sorted(counts.items())) + "\n")
    assert not failures, "\n".join([f"{len(failures)} of {FILES}", *failures[:40]])
    assert all(counts[kind] for kind in KINDS)


BESIDE = ("glec_received", "glec_command", "glec_kept_session", "glec_gathered", "glec_set_aside")


@pytest.mark.parametrize("name", BESIDE)
def test_any_value_in_any_column_of_a_table_beside_the_queue_s(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In a file whose tables take any: what nothing can be made of is left out, and stops nothing."""
    caplog.set_level(logging.CRITICAL, "glec_fast")
    path = tmp_path / "queue.db"
    Store(path).close()
    database(
        path,
        "PRAGMA writable_schema = 1; UPDATE sqlite_schema SET"
        " sql = replace(replace(sql, ' NOT NULL', ''), 'CHECK (id = 1)', '') WHERE name LIKE 'glec%'"
        "; PRAGMA writable_schema = reset",
    )
    failures = []
    with closing(Store(path)) as store:
        for column, value in product(COLUMNS[name], ODD):

            def lay(table: QueueTable, column: str = column, value: str = value) -> None:
                for each in BESIDE:
                    table.connection.execute(f"DELETE FROM {each}")
                fill(table)
                with suppress(apsw.MismatchError):
                    table.connection.execute(f"UPDATE OR IGNORE {name} SET {column} = {value}")
                table.connection.execute("DELETE FROM glec_command WHERE number > 1000000")

            store.run(lay)
            try:
                look_beside(store)
            except Exception as error:
                failures.append(f"{column} = {value}: {error!r}")
    assert failures == []

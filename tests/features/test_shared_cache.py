"""Four processes fill one cache while one prunes it and one verifies it: nothing wrong is read, nothing is lost."""

import time
from collections.abc import Callable
from pathlib import Path

from mclip_kit.errors import MclipError
from mclip_kit.features.manage import list_tables, remove, select_for_removal, verify
from mclip_kit.files import write_json
from tests.features.tables import Tower, assert_right, keys_of, table_in, together

TABLES = 2
ROUNDS = 4  # of each process that fills


def described(root: Path, number: int) -> Path:
    """A table's folder, with what `cache ls` reads of it."""
    folder = root / f"made-up-{number}"
    facts = {"kind": "made-up", "named": "", "weights": "0", "precision": "fp32", "width": 8, "dtype": "fp32"}
    write_json(folder / "table.json", facts)
    return folder


def test_four_fill_one_cache_while_one_prunes_and_one_verifies(tmp_path: Path) -> None:
    root = tmp_path / "cache"

    def fill(rank: int) -> None:
        for start in range(ROUNDS):
            names = [start * 5 + (rank * 7 + i) % 23 for i in range(20)]
            for _ in range(1000):  # of attempts
                try:
                    folder = described(root, start % TABLES)
                    tower = Tower(names, True, pause=0.002)
                    table = table_in(folder, rows=6)
                    rows = table.fill(keys_of(names), tower.job())
                    assert_right(table, rows, names, True)
                    break
                except MclipError as error:
                    if "removed" not in str(error) or "run" not in str(error).rpartition(";")[2]:
                        raise
            else:
                raise AssertionError("a thousand attempts")
        (tmp_path / f"done-{rank}").touch()

    def until_done(step: Callable[[], None], pause: float) -> None:
        while len(list(tmp_path.glob("done-*"))) < 4:
            if root.is_dir():
                step()
            time.sleep(pause)

    def prune() -> None:
        for table in select_for_removal(list_tables(root), size=0)[:1]:
            remove(table)

    def look() -> None:
        assert not list(verify(list_tables(root)))

    together(
        *(lambda rank=rank: fill(rank) for rank in range(4)),
        lambda: until_done(prune, 0.3),
        lambda: until_done(look, 0.02),
    )

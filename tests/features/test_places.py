"""Places of features: found once for all rows, also where rows share keys."""

from pathlib import Path

import numpy as np
import pytest

from mclip_kit.data.sequences import blocks_of
from mclip_kit.features import places
from mclip_kit.features.places import find_once
from tests.features.tables import Tower, filled, keys_of, table_in

NAMES = list(range(50))


@pytest.mark.parametrize("block", [7, 2**14])
def test_rows_that_share_keys_find_the_same_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(places, "blocks_of", lambda count: blocks_of(count, block))
    filled(tmp_path / "table", Tower(NAMES))
    table = table_in(tmp_path / "table")
    key_of_N = np.random.default_rng(0).integers(0, 50, 300).astype(np.int32)
    shared = find_once(table, lambda: keys_of(NAMES), tmp_path / "shared", key_of_N)
    alone = find_once(table, lambda: keys_of(NAMES)[key_of_N], tmp_path / "alone")
    assert shared is not None
    np.testing.assert_array_equal(shared, alone)
    np.testing.assert_array_equal(shared, table.find(keys_of(NAMES))[key_of_N])


def test_only_keys_of_some_row_must_be_there(tmp_path: Path) -> None:
    filled(tmp_path / "table", Tower(NAMES))
    table = table_in(tmp_path / "table")
    keys_K2 = keys_of([*NAMES, 1000])
    assert find_once(table, lambda: keys_K2, tmp_path / "some", np.array([3, 49, 3])) is not None
    assert find_once(table, lambda: keys_K2, tmp_path / "all", np.array([3, 50])) is None
    assert not list((tmp_path / "all").glob("table-*"))

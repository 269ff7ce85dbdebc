"""Keys are found by both halves, also if other keys share one half."""

import numpy as np

from mclip_kit.features.index import BITS, find


def test_keys_that_share_a_half_are_different() -> None:
    keys_N2 = np.array([[5, 1], [5, 2], [5, 3], [7, 1], [2**63, 9]], "<u8")
    columns = keys_N2[:, 0].copy(), keys_N2[:, 1].copy(), np.array([0, 1, 1 << BITS, 2, 3], "<u8")
    wanted_N2 = np.array([[2**63, 9], [5, 3], [5, 1], [5, 4], [6, 1], [2**63 + 1, 9], [7, 1], [5, 2], [5, 3]], "<u8")
    assert find(columns, wanted_N2).tolist() == [3, 1 << BITS, 0, -1, -1, -1, 2, 1, 1 << BITS]


def test_an_empty_index_has_nothing() -> None:
    empty = np.zeros(0, "<u8")
    assert find((empty, empty, empty), np.array([[1, 2]], "<u8")).tolist() == [-1]
    assert find((empty, empty, empty), np.zeros((0, 2), "<u8")).tolist() == []

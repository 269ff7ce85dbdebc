"""Long columns: lines of a file, and several columns read as one."""

from pathlib import Path

import numpy as np
import pytest

from mclip_kit.data.sequences import ConcatSequence, Subset, TextLines, some
from mclip_kit.errors import DataError


def lines(folder: Path, content: bytes) -> TextLines:
    (folder / "lines.txt").write_bytes(content)
    return TextLines(folder / "lines.txt")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("one\nzwei\n三\n", ["one", "zwei", "三"]),
        ("one\ntwo", ["one", "two"]),
        ("", []),
        ("\n", [""]),
        ("\n\na\n\n", ["", "", "a", ""]),
        ("a\u2028b\x0cc\u0085d\n", ["a\u2028b\x0cc\u0085d"]),
    ],
    ids=["plain", "no newline at the end", "empty file", "empty line", "empty lines", "only newlines separate"],
)
def test_lines_of_a_file(tmp_path, content, expected):
    found = lines(tmp_path, content.encode())
    assert len(found) == len(expected)
    assert list(found) == expected
    for start in range(len(expected)):
        for stop in range(start + 1, len(expected) + 1):
            assert found.run(slice(start, stop)) == expected[start:stop]


def test_windows_line_ends_are_no_part_of_a_line(tmp_path):
    found = lines(tmp_path, b"one\r\ntwo\r\n")
    assert list(found) == found.run(slice(0, 2)) == ["one", "two"]


def test_a_line_that_is_not_utf8_is_named(tmp_path):
    found = lines(tmp_path, b"one\ntwo\n\xe9t\xe9\nfour\n")
    assert found[3] == "four"
    with pytest.raises(DataError, match=r"lines\.txt line 3: not UTF-8$"):
        found[2]
    with pytest.raises(DataError, match=r"lines\.txt line 3: not UTF-8$"):
        found.run(slice(1, 4))


@pytest.mark.parametrize("rows", [[], [1], [1, 2, 3], [0, 2, 3], [0, 19], [3, 1, 2], [2, 2]], ids=str)
def test_some_rows_are_the_same_however_they_are_read(tmp_path, rows):
    found = lines(tmp_path, b"".join(b"%d\n" % number for number in range(20)))
    assert some(found, np.array(rows, int)) == some(list(found), np.array(rows, int)) == [str(row) for row in rows]


@pytest.mark.parametrize(
    "part", [slice(None), slice(2, 5), slice(-3, None), slice(5, 1, -2), slice(4, 99), slice(3, 3)], ids=str
)
def test_slices_and_ends_are_those_of_a_list(tmp_path, part):
    expected = ["a", "b", "c", "d", "e", "f", "g"]
    rows = np.array([8, 0, 1, 2, 3, 4, 5])
    made = lines(tmp_path, "\n".join(expected).encode())
    subset = Subset("bcdefg__a", rows)
    for sequence in (made, ConcatSequence(["ab", "", ["c", "d", "e"], made[5:]]), subset):
        assert sequence[part] == expected[part]
        assert sequence[-7] == "a"
        for beyond in (-8, 7):
            with pytest.raises(IndexError):
                sequence[beyond]


def test_missing_lines_are_named(tmp_path):
    with pytest.raises(DataError, match=r"lines\.txt: missing; prepare it with --again"):
        TextLines(tmp_path / "lines.txt")


def test_a_chain_is_one_sequence_after_the_other():
    chain = ConcatSequence(["ab", "", "c", ""])
    assert len(chain) == 3
    assert list(chain) == ["a", "b", "c"]
    assert [chain[np.int64(i)] for i in (2, 0, 1)] == ["c", "a", "b"]


def test_a_chain_ends():
    with pytest.raises(IndexError):
        ConcatSequence(["ab", "c"])[3]
    assert list(ConcatSequence([])) == []


def test_a_chain_counts_from_the_end_too():
    assert ConcatSequence(["ab", "cd"])[-1] == "d"

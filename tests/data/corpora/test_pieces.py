"""Pieces of a text file have its lines, whatever ends them, and its errors."""

import gzip
from pathlib import Path

import pytest

from mclip_kit.data.corpora import pieces as module
from mclip_kit.data.corpora.pieces import in_pieces, lines_of, pieces
from mclip_kit.data.corpora.records import Form, open_table
from mclip_kit.data.corpora.source import File
from mclip_kit.errors import DataError


@pytest.fixture(autouse=True, params=[1, 7, 2**17])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BYTES", request.param)


def written(folder: Path, content: bytes) -> File:
    (folder / "t.tsv").write_bytes(content)
    return File(folder / "t.tsv")


def read(file: File) -> list[tuple[int, str]]:
    return [line for piece in pieces(file) for line in lines_of(file, piece)]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"a\tb\nc\td\n",
        b"no end\nof the last",
        b"a\r\n\r\nb\r\r\n",
        b"a\rb\x0bc\x1cd\xc2\x85e\n\n\nf",
        b"\xef\xbb\xbfmark\n\xef\xbb\xbfinside\n",
        "ü\n日本 語\n".encode() * 9,
    ],
)
def test_lines_are_those_of_the_file(tmp_path: Path, content: bytes) -> None:
    file = written(tmp_path, content)
    assert read(file) == list(enumerate(file.lines(), 1))
    assert b"".join(piece for _, piece in pieces(file)) == content
    assert in_pieces(file, None)


@pytest.mark.parametrize("wrong", [b"b\xff\n", b"\xe6\x97\n", b"\xe6\x97", b"\xed\xa0\x80\n"])
def test_an_error_names_the_line_and_comes_after_those_before(tmp_path: Path, wrong: bytes) -> None:
    file = written(tmp_path, b"a\n\nc\n" + wrong + (b"e\n" if wrong.endswith(b"\n") else b""))
    with pytest.raises(DataError) as expected:
        list(file.lines())
    lines: list[tuple[int, str]] = []
    with pytest.raises(DataError) as found:
        lines.extend(line for piece in pieces(file) for line in lines_of(file, piece))
    assert str(found.value) == str(expected.value)
    assert "line 4: not UTF-8 (byte" in str(found.value)
    assert lines == [(1, "a"), (2, ""), (3, "c")]


def test_compressed_files_and_other_encodings_are_not_read_in_pieces(tmp_path: Path) -> None:
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(b"a\tb\n"))
    assert not in_pieces(File(tmp_path / "a.tsv.gz"), None)
    assert not in_pieces(written(tmp_path, "a\tb\n".encode("utf-16")), None)
    assert not in_pieces(written(tmp_path, b"a\tb\n"), "cp1252")


@pytest.mark.parametrize("header", [None, ["x", "y"]])
def test_rows_of_pieces_are_those_of_the_table(tmp_path: Path, header: list[str] | None) -> None:
    file = written(tmp_path, b"".join(b"%d\tcell %d\r\n" % (n, n) for n in range(40)))
    opened = open_table(file, Form(header=header))
    assert opened.pieces
    assert opened.parse
    rows = [row for piece in opened.pieces() for row in opened.parse(piece)]
    assert rows == list(opened.read([]))
    assert rows == [(n + 1, [str(n), f"cell {n}"]) for n in range(0 if header else 1, 40)]

"""Text files in pieces of whole lines, which other processes decode and split."""

from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator

from mclip_kit.data.corpora.source import File, after, decoded, wrong_encoding
from mclip_kit.errors import DataError

BYTES = 2**17  # of a piece, at least
Piece = tuple[int, bytes]
"""The number of lines before, and whole lines as bytes."""


def in_pieces(file: File, encoding: str | None) -> bool:
    """Whether a file can be read in pieces: it is neither compressed nor in another encoding than UTF-8."""
    if encoding or not file.uncompressed:
        return False
    with file.open() as handle:
        return not handle.read(2).startswith((BOM_UTF16_LE, BOM_UTF16_BE))


def pieces(file: File) -> Iterator[Piece]:
    """The pieces of a file.

    Raises:
        DataError: it is missing or damaged.
    """
    before = 0
    try:
        with file.open() as handle:
            while content := handle.read(BYTES) + handle.readline():
                yield before, content
                before += content.count(b"\n")
    except DataError as error:
        raise DataError(f"{error}{after(before)}") from None


def lines_of(file: File, piece: Piece) -> Iterator[tuple[int, str]]:
    """The numbered lines of a piece, as `File.lines` gives them.

    Raises:
        DataError: a line is not UTF-8; the message names file and line.
    """
    before, content = piece
    content = content if before else content.removeprefix(BOM_UTF8)
    wrong = None
    try:
        text = decoded(content)
    except UnicodeDecodeError as error:
        wrong = error
        text = content[: content.rfind(b"\n", 0, error.start) + 1].decode()
    lines = text.removesuffix("\n").split("\n") if text else []
    for number, line in enumerate(lines, before + 1):
        yield number, line.rstrip("\r\n")
    if wrong:
        raise DataError(f"{file} line {before + len(lines) + 1}: {wrong_encoding(wrong, None)}")

"""Hashes of texts and pictures, by which equal ones are recognised: for drawn splits and for the leakage check.

A picture is hashed by its name and by its content, a text by its letters, digits and marks. The hash is 0 if there
is nothing to compare.
"""

import unicodedata
from collections.abc import Iterable
from hashlib import blake2b
from itertools import islice

import numpy as np

from mclip_kit.data.images import is_local, picture_id

BLOCK = 4096  # texts that are hashed at once
NO_HASH, NO_KEY = bytes(8), bytes(16)


def hash_texts(texts: Iterable[str]) -> np.ndarray:
    """Hash texts by their letters, digits and marks, uint64 (N,); 0 for a text that has none.

    Case, width, punctuation and spacing do not count: they are what corpora change about a caption.
    """
    rest = iter(texts)
    digests: list[bytes] = []
    while block := list(islice(rest, BLOCK)):
        digests += [_digest(text.encode()) for text in _normalize(block)]
    return _as_array(digests)


def hash_pictures(names: Iterable[str], source: str | None) -> np.ndarray:
    """Hash pictures by their names, uint64 (N,); 0 for a name that is unique in its own corpus only.

    Args:
        names: as a corpus spells them.
        source: where the pictures are from (`Corpus.pictures`).
    """
    names = list(names)
    if source is None and is_local("\n".join(names)):  # all of them, at once
        return np.zeros(len(names), "<u8")
    return _as_array([_hash_name(name, source) for name in names])


def _hash_name(name: str, source: str | None) -> bytes:
    if source is None and is_local(name):
        return NO_HASH
    name = picture_id(name, source)
    return _digest(name.encode()) if ":" in name else NO_HASH


def hash_contents(contents: Iterable[bytes]) -> np.ndarray:
    """Hash pictures by their bytes, uint64 (N,); 0 for empty bytes."""
    return _as_array([_digest(content) for content in contents])


def hash_and_key(contents: Iterable[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of pictures by their bytes, as `hash_contents` has them, and their keys; a picture at a time.

    Returns:
        hashes uint64 (N,), and keys uint64 (N, 2), as the feature cache has them; zeros for empty bytes.
    """
    hashes, keys = [], []
    for content in contents:
        hashes.append(_digest(content))
        keys.append(blake2b(content, digest_size=16).digest() if content else NO_KEY)
    return _as_array(hashes), _as_array(keys).reshape(-1, 2)


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=8).digest() if content else NO_HASH


def _as_array(digests: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(digests), "<u8")


def _normalize(texts: list[str]) -> list[str]:
    """NFKC and casefold; whatever is between letters, digits and marks becomes one space.

    All texts are processed as one string with a line each: one call a text would take longer than the work itself.
    """
    lines = "\n".join([text.replace("\n", " ") for text in texts])
    if not unicodedata.is_normalized("NFKC", lines):  # this check is far cheaper than normalising
        lines = "\n".join([_nfkc(line) for line in lines.split("\n")])
    codes_N = np.frombuffer(lines.casefold().encode("utf-32-le", "surrogatepass"), "<u4")
    kept = _replace_others(codes_N).tobytes().decode("utf-32-le")
    return [" ".join(line.split()) for line in kept.split("\n")]


def _nfkc(line: str) -> str:
    return line if unicodedata.is_normalized("NFKC", line) else unicodedata.normalize("NFKC", line)


_REPLACEMENT = np.zeros((0x1100, 0x100), "<u4")
_FILLED = np.zeros(0x1100, bool)
"""A table: code point -> itself or a space. Blocks of 256 code points are filled when they first occur."""


def _replace_others(codes_N: np.ndarray) -> np.ndarray:
    """Code points, with a space for each that is not a letter, a digit, a mark or a line feed."""
    for row in np.flatnonzero(np.bincount(codes_N >> 8, minlength=len(_FILLED)).astype(bool) & ~_FILLED):
        codes = range(int(row) << 8, (int(row) + 1) << 8)
        _REPLACEMENT[row] = [code if _counts(code) else ord(" ") for code in codes]
        _FILLED[row] = True
    return _REPLACEMENT.reshape(-1)[codes_N]


def _counts(code: int) -> bool:
    if 0x180B <= code <= 0x180F or 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF:
        return False  # Unicode calls variation selectors marks, but an emoji may have one or not
    return code == ord("\n") or unicodedata.category(chr(code))[0] in "LNM"

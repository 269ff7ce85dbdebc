"""Keys of contents: 128 bits of BLAKE2b, by which the feature cache knows an input, and rows equal texts."""

import hashlib
import re
from collections.abc import Iterable

import numpy as np

SPACES = re.compile(r"[ \t\n\r]+")


def hash_bytes(contents: Iterable[bytes]) -> np.ndarray:
    """Keys of some contents, uint64 (N, 2): BLAKE2b, 128 bits."""
    digests = bytearray()
    for content in contents:
        digests += hashlib.blake2b(content, digest_size=16).digest()
    return np.frombuffer(digests, "<u8").reshape(-1, 2)


def hash_texts(texts: Iterable[str]) -> np.ndarray:
    """Keys of texts, uint64 (N, 2); pass texts through `normalize_spaces` first."""
    return hash_bytes(text.encode() for text in texts)


def hash_tokens(tokens: Iterable[np.ndarray]) -> np.ndarray:
    """Keys of token ids, uint64 (N, 2)."""
    return hash_bytes(np.asarray(ids, "<i4").tobytes() for ids in tokens)


def normalize_spaces(text: str) -> str:
    """A text with single spaces, as every tokenizer of open_clip reads it.

    Only ASCII spaces count. Others, such as the no-break space, may be half of a letter that ftfy repairs first.
    """
    if "  " in text or "\n" in text or "\t" in text or "\r" in text:
        text = SPACES.sub(" ", text)
    return text.strip(" ")

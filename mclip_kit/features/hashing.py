"""Hashes that identify features: of the content of an input, and of everything that decides a tower's output."""

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn


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
    return re.sub(r"[ \t\n\r]+", " ", text).strip(" ")


def hash_tower(facts: dict[str, Any]) -> str:
    """A hash of everything that decides a tower's output: 16 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()


def hash_weights(module: nn.Module) -> str:
    """A hash of a module's parameters and buffers: 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

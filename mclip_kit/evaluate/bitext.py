"""Retrieval of parallel sentences: is a sentence's nearest neighbour in the other language its translation?

The error rate is that of Tatoeba (Artetxe and Schwenk, arXiv 1812.10464, section 4.3), by cosine, both ways. Sentences
with the same text count as the same answer.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F

from mclip_kit.data.bitext import Bitext, Direction, read_direction
from mclip_kit.evaluate.base import Findings, Metric, Request, ResultRows
from mclip_kit.evaluate.checks import held_out as held_out
from mclip_kit.evaluate.checks import open_data
from mclip_kit.evaluate.embedder import Embedder
from mclip_kit.evaluate.models import computed_on, open_cache
from mclip_kit.evaluate.ranks import ranks
from mclip_kit.evaluate.retrieval import STUDENT
from mclip_kit.features.extract import FrozenTowers
from mclip_kit.layout import CLIP
from mclip_kit.models.device import auto_device
from mclip_kit.models.freezing import evaluating
from mclip_kit.models.projectors import pool
from mclip_kit.models.student import load_student
from mclip_kit.models.text_encoder import Encoder, encoder_within
from mclip_kit.models.translator import Translator
from mclip_kit.progress import SOON, tqdm
from mclip_kit.storage import fetch, place

METRICS = (
    Metric("retrieval_error", "error", "sentence retrieval error rate"),
    Metric(
        "retrieval_accuracy",
        "accuracy",
        "sentence retrieval accuracy",
        drawn=True,
        sentence="of sentences have their translation as the nearest sentence",
    ),
)

Embed = Callable[[Sequence[str]], np.ndarray]
"""Texts -> L2-normalised embeddings (N, D)."""


def mean_pooled(encoder: Encoder, batch_size: int = 64) -> Embed:
    """Embed by the mean of an encoder's token states, without padding."""

    def embed(texts: Sequence[str]) -> np.ndarray:
        tokens = encoder.tokenizer.encode(texts, encoder.positions)
        order = np.argsort([len(ids) for ids in tokens], kind="stable")
        out_NH = np.zeros((len(texts), encoder.width), np.float32)
        with evaluating(encoder):
            starts = range(0, len(order), batch_size)
            for start in tqdm(starts, "embed sentences", unit="batch", leave=False, delay=SOON):
                rows = order[start : start + batch_size]
                ids_BT, mask_BT = encoder.pad([tokens[row] for row in rows])
                pooled_BH = pool(encoder(ids_BT, mask_BT).float(), mask_BT, "mean")
                out_NH[rows] = F.normalize(pooled_BH, dim=-1).cpu().numpy()
        return out_NH

    return embed


def errors(embed: Embed, sources: Sequence[str], targets: Sequence[str]) -> tuple[float, float]:
    """Error rates in percent: of the sources' nearest targets, then of the targets' nearest sources.

    Args:
        sources, targets: N sentences and their translations.
    """
    numbers: dict[str, int] = {}
    groups_2N = [np.array([numbers.setdefault(text, len(numbers)) for text in texts]) for texts in (sources, targets)]
    left_ND, right_ND = embed(sources), embed(targets)
    forth = ranks(left_ND, right_ND, groups_2N[1], groups_2N[1])
    back = ranks(right_ND, left_ND, groups_2N[0], groups_2N[0])
    return float((forth > 1).mean() * 100), float((back > 1).mean() * 100)


def embedder(request: Request, folder: Path) -> tuple[Embed, str]:
    """The embeddings of a folder, and what the model was made from.

    Args:
        folder: a model folder: its student embeds; or the folder of an encoder or a translator: the mean of the
            encoder's token states.
    Raises:
        CheckpointError: the folder holds none of them.
    """
    cache = open_cache(request, place(folder))
    if (fetch(folder) / CLIP).is_dir():
        student: Any = load_student(folder)
        return Embedder(student, cache).whole_student, student.made_from
    encoder = encoder_within(folder).to(auto_device())
    alone: Any = Translator(encoder)
    towers = FrozenTowers(alone, cache)

    def embed(texts: Sequence[str]) -> np.ndarray:
        tokens = encoder.tokenizer.encode(texts, encoder.positions)
        return np.asarray(F.normalize(towers.pooled(tokens, pooling="mean").take(), dim=-1).numpy())

    return embed, str(folder)


def evaluate(
    embed: Embed, bitexts: Sequence[Bitext], split: str, directions: Sequence[Direction], count: int | None = None
) -> dict[Direction, tuple[int, float]]:
    """Number of sentences and error rate in percent, of every direction.

    Args:
        count: how many sentences, the first ones, of the first corpus that has the direction; None: all.
    """
    found: dict[Direction, tuple[int, float]] = {}
    for source, target in tqdm(directions, "compare sentences", unit="direction", leave=False, delay=SOON):
        if (source, target) not in found:
            texts, translations = held_out_sentences(bitexts, split, (source, target), count)
            forth, back = errors(embed, texts, translations)
            found |= {(source, target): (len(texts), forth), (target, source): (len(texts), back)}
    return {direction: found[direction] for direction in directions}


def held_out_sentences(
    bitexts: Sequence[Bitext], split: str, direction: Direction, count: int | None = None
) -> tuple[list[str], list[str]]:
    """Sentences of a direction and their translations, of the first corpus that has the direction.

    Args:
        count: how many, the first ones; None: all.
    """
    source, target = next(found for bitext in bitexts if (found := read_direction(bitext, split, direction)))
    return list(islice(source.texts, count)), list(islice(target.texts, count))


def run(request: Request) -> Findings:
    """Score every model: a table of error rates."""
    bitexts, directions = request.opened or open_data(request)
    rows: ResultRows = []
    for name in request.models:
        embed, made_from = embedder(request, name)
        found = evaluate(embed, bitexts, request.split, directions, request.sentences)
        rows += _rows(found, request.about(name, made_from))
        request.show(_table(request.title(name), found))
    return Findings(rows, device=computed_on(request))


def _rows(found: Mapping[Direction, tuple[int, float]], about: dict[str, Any]) -> ResultRows:
    """A row of results.json for each direction."""
    return [
        about
        | {
            "language": "-".join(direction),
            "tower": STUDENT,
            "n_captions": count,
            "metrics": {"retrieval_error": error / 100, "retrieval_accuracy": 1 - error / 100},
        }
        for direction, (count, error) in found.items()
    ]


def _table(title: str, found: Mapping[Direction, tuple[int, float]]) -> str:
    """Error rates in percent, and their mean."""
    lines = [title, f"{'':26}{METRICS[0].label:>8}{'sentences':>11}"]
    lines += [f"  {'-'.join(way):24}{error:8.1f}{count:11,}" for way, (count, error) in found.items()]
    mean = np.mean([error for _, error in found.values()])
    return "\n".join([*lines, f"{f'mean of {len(found)}':26}{mean:8.1f}", "percent of wrong nearest neighbours"])

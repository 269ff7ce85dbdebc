"""Parallel-sentence retrieval: whether a sentence's nearest neighbour in another language is its translation.

The error rate is that of Tatoeba (Artetxe and Schwenk, arXiv 1812.10464, section 4.3), by cosine, both ways. Sentences
with the same text are the same answer.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch.nn.functional as F

from mclip_kit.data.bitext import Bitext, Direction, read_direction
from mclip_kit.evaluate.ranks import ranks
from mclip_kit.models.freezing import evaluating
from mclip_kit.models.multilingual_clip import load
from mclip_kit.models.projectors import pool
from mclip_kit.models.text_encoder import Encoder, encoder_within

Embed = Callable[[Sequence[str]], np.ndarray]
"""Texts -> L2-normalised embeddings (N, D)."""


def mean_pooled(encoder: Encoder, batch_size: int = 64) -> Embed:
    """The mean of an encoder's token states."""

    def embed(texts: Sequence[str]) -> np.ndarray:
        tokens = encoder.tokenizer.encode(texts, encoder.positions)
        order = np.argsort([len(ids) for ids in tokens], kind="stable")
        out_NH = np.zeros((len(texts), encoder.width), np.float32)
        with evaluating(encoder):
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                ids_BT, mask_BT = encoder.pad([tokens[row] for row in rows])
                pooled_BH = pool(encoder(ids_BT, mask_BT).float(), mask_BT, "mean")
                out_NH[rows] = F.normalize(pooled_BH, dim=-1).cpu().numpy()
        return out_NH

    return embed


def errors(embed: Embed, sources: Sequence[str], targets: Sequence[str]) -> tuple[float, float]:
    """Error rates in percent: of the sources' nearest targets, and of the targets' nearest sources.

    Args:
        sources, targets: N sentences and their translations.
    """
    numbers: dict[str, int] = {}
    groups_2N = [np.array([numbers.setdefault(text, len(numbers)) for text in texts]) for texts in (sources, targets)]
    left_ND, right_ND = embed(sources), embed(targets)
    forth = ranks(left_ND, right_ND, groups_2N[1], groups_2N[1])
    back = ranks(right_ND, left_ND, groups_2N[0], groups_2N[0])
    return float((forth > 1).mean() * 100), float((back > 1).mean() * 100)


def embedder(folder: Path) -> tuple[Embed, str]:
    """Embeddings by a model's student, or the mean pool of an encoder or of a translator's; and what it was made from.

    Raises:
        CheckpointError: the folder holds none of them.
    """
    if (folder / "clip").is_dir():
        model = load(folder)
        return lambda texts: model.encode_text(texts).numpy(), model.made_from
    return mean_pooled(encoder_within(folder)), str(folder)


def evaluate(
    embed: Embed, bitexts: Sequence[Bitext], split: str, directions: Sequence[Direction], count: int | None = None
) -> dict[Direction, tuple[int, float]]:
    """Sentences, and the error rate in percent, of every direction.

    Args:
        count: the first so many of the first corpus that has the direction; None: all.
    """
    found: dict[Direction, tuple[int, float]] = {}
    for source, target in directions:
        if (source, target) not in found:
            texts, translations = held_out_sentences(bitexts, split, (source, target), count)
            forth, back = errors(embed, texts, translations)
            found |= {(source, target): (len(texts), forth), (target, source): (len(texts), back)}
    return {direction: found[direction] for direction in directions}


def held_out_sentences(
    bitexts: Sequence[Bitext], split: str, direction: Direction, count: int | None = None
) -> tuple[list[str], list[str]]:
    """Sentences of a direction and their translations, of the first corpus that has it."""
    source, target = next(found for bitext in bitexts if (found := read_direction(bitext, split, direction)))
    return list(islice(source.texts, count)), list(islice(target.texts, count))

"""Parallel-sentence retrieval: whether a sentence's nearest neighbour in another language is its translation.

The error rate is that of Tatoeba (Artetxe and Schwenk, arXiv 1812.10464, section 4.3), by cosine, both ways. Sentences
with the same text are the same answer.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch.nn.functional as F

from mclip_kit.evaluate.retrieval import ranks
from mclip_kit.towers.mode import evaluating
from mclip_kit.towers.projectors import pool
from mclip_kit.towers.xlmr import Encoder

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

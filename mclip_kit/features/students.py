"""Embeddings of a whole student: kept where no part of it is trained, so that each text is encoded once."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mclip_kit.data.content_keys import hash_tokens
from mclip_kit.features.extract import FrozenTowers
from mclip_kit.features.job import ExtractionJob
from mclip_kit.models.device import autocast
from mclip_kit.models.encoding import texts_of_a_batch
from mclip_kit.models.freezing import evaluating


def student_embeddings(towers: FrozenTowers, tokens: Sequence[np.ndarray]) -> Tensor:
    """Embeddings of texts by the student, float32 (N, D), not normalised.

    Those that are not in the cache are computed in the batches of `MultilingualClip.encode_text`; the same text is
    encoded once.

    Args:
        towers: of a model no part of which is trained.
        tokens: token ids of each text, see `MultilingualClip.student_tokens`.
    Raises:
        NonfiniteOutput: an embedding is non-finite (NaN or inf), so it cannot be kept.
    """
    model, cache = towers.model, towers.cache
    order = np.argsort([-len(ids) for ids in tokens], kind="stable")
    sorted_tokens = [tokens[row] for row in order]

    def facts() -> dict[str, object]:
        config = {"encoder": model.tower_config("encoder"), "projector": model.settings["projector"]}
        weights = {"weights": towers.weights("encoder"), "projector": towers.weights("projector")}
        return {"named": model.made_from, **weights, "config": config, **cache.facts}

    def run(part: Sequence[np.ndarray]) -> Tensor:
        with evaluating(model), autocast(model.device, cache.precision):
            return model.embed_tokens(part)

    table = cache.table("student", "student_text", model.width, facts)
    size = texts_of_a_batch(model.device)
    job = ExtractionJob(lambda part: ([sorted_tokens[row] for row in part], []), run, batch_items=size)
    rows = table.fill(hash_tokens(sorted_tokens), job, cache.rank, cache.world_size)
    out_ND = torch.empty(len(tokens), model.width)
    out_ND[torch.from_numpy(order)] = table.take(rows)
    return out_ND

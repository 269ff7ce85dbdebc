"""Scoring a model while it trains: each process embeds its share, and the main process ranks."""

from functools import partial
from typing import Any

import torch

from mclip_kit.features.cache import FeatureCache
from mclip_kit.tasks.base import Scores, Task
from mclip_kit.train import fsdp
from mclip_kit.train.processes import on_all, on_main


def score(evaluator: Any, model: Any, cache: FeatureCache, task: Task) -> Scores:
    """Scores of the weights as they are, the same in all processes, which must all ask for them.

    Args:
        evaluator: (model, cache, task) -> scores, called in the main process. If it has a method `share`, with the same
            arguments, each process calls that first, and the evaluator gets what all returned as `shares`. Sharded
            weights need all processes in every step, so each of them does everything then.
    """
    evaluate = partial(evaluator, model, cache, task)
    if fsdp.is_sharded(model):
        scores: Scores = evaluate()
        return on_main(lambda: scores)
    if cache.world_size > 1 and hasattr(evaluator, "share"):
        _take_buffers_of_main(model)
        evaluate = partial(evaluate, shares=on_all(partial(evaluator.share, model, cache, task)))
    return on_main(evaluate)


@torch.no_grad()
def _take_buffers_of_main(model: torch.nn.Module) -> None:
    """Running means and variances (BatchNorm) are each process's own after a step."""
    buffers = on_main(lambda: dict(model.named_buffers()))
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])

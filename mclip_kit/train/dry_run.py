"""What a run will take, before it takes it: `mclip-kit train --dry-run`.

Every stage takes ten steps on as many rows as are quick, and is scaled up to its batch from there. Nothing is written.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from mclip_kit.config.stages import TranslationStage, TriangleStage
from mclip_kit.data.datasets import TranslationRows, TriangleRows
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.extract import FrozenTowers
from mclip_kit.files import readable
from mclip_kit.models.freezing import evaluating
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.tasks.translation import TranslationBatch
from mclip_kit.tasks.triangle import TriangleBatch
from mclip_kit.tasks.triangle_batches import Feed, Needs
from mclip_kit.train.translate import PairFeed

STEPS = 10
QUICK = 1.0  # seconds that a measured step may take
NUMBER = {"fp16": 2, "fp32": 4, "int8": 1}


Kept = tuple[str, int, int, float]
"""A feature that is kept: its name, inputs in all, bytes of one, seconds to compute one."""


@dataclass
class Trial:
    """A stage in small, ready to be measured.

    Attributes:
        stage: which.
        rows, per_epoch, steps: its rows, and the steps of a pass over them and in all.
        size: of a step, for people.
        share: rows of a step that one process has, of which `together` are in memory at once.
        sample: so many rows -> a batch of them, in which frozen towers' outputs stand in for their inputs where they
            are kept, and what is kept.
    """

    stage: TriangleStage | TranslationStage
    rows: int
    steps: int
    size: str
    share: int
    together: int
    sample: Callable[[int], tuple[Any, list[Kept]]]


def estimate(trial: Trial, step: Callable[[Any], None], model: nn.Module) -> Iterator[str]:
    """Lines about a stage's time, memory and features.

    Args:
        step: takes a step on a batch: gradients, and the optimiser's.
    """
    rows, _ = trial.sample(2)
    seconds = min(_timed(lambda: step(rows))[0] for _ in range(3))  # the first one warms up
    count = int(np.clip(2 * QUICK / max(seconds, 1e-6), 2, min(trial.share, trial.rows)))
    batch, kept = trial.sample(count)
    with _counting(model) as saved:
        step(batch)
    times = [_timed(lambda: step(batch))[0] for _ in range(STEPS)]
    whole = median(times) * trial.share / count
    yield (
        f"{trial.stage.name}: {trial.rows:,} rows, {trial.steps:,} steps of {trial.size}; "
        f"about {_clock(whole)} a step ({STEPS} of {count} rows took {median(times):.3g} s, {min(times):.3g} to "
        f"{max(times):.3g}), {_clock(whole * trial.steps)} in all"
    )
    yield _memory(trial, model, sum(saved.values()) * trial.together / count)
    for name, items, size, took in kept:
        yield f"  features, {name}: {readable(items * size)}, filled in about {_clock(took * items)}"


def _memory(trial: Trial, model: nn.Module, activations: float) -> str:
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    device = next(model.parameters()).device
    there = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else psutil.virtual_memory().total
    needed = weights + 3 * gradients + activations  # Adam's and LAMB's two moments
    line = (
        f"  memory: {readable(needed)} of {readable(there)}: weights {readable(weights)}, gradients and moments "
        f"{readable(3 * gradients)}, what {trial.together:,} rows keep for the backward pass {readable(activations)}"
    )
    advice = "checkpointing" if isinstance(trial.stage, TranslationStage) else "micro_batch or checkpointing"
    return line if needed < there else f"{line}; too much: set {advice}"


def triangle_trial(
    stage: TriangleStage,
    examples: TriangleRows,
    model: MultilingualClip,
    needs: Needs,
    captions: Any,
    processes: int,
    dtype: str,
) -> Trial:
    """A stage on edges of the triangle.

    Args:
        needs: its vertices and live towers.
        dtype: of stored features.
    """
    live = Needs(needs.vertices, needs.live, needs.templates, needs.shift, needs.colour, "off", 1.0)

    def sample(count: int) -> tuple[TriangleBatch, list[Kept]]:
        rows = np.random.default_rng(0).choice(len(examples), count, replace=False)
        fields = Feed(FrozenTowers(model, FeatureCache()), examples, live, captions).batch(rows)
        batch = TriangleBatch(**fields).to(model.device)
        kept: list[Kept] = []

        def keep(name: str, inputs: int, items: int, tower: str, *given: Tensor | None) -> Tensor:
            module = getattr(model, tower)
            with evaluating(module):
                seconds, output = _timed(lambda: module(*given))
            number = NUMBER[dtype if name == "token states" or dtype != "int8" else "fp16"]
            kept.append((name, items, output.shape[-1] * number, seconds / inputs))
            return output

        if needs.cache != "off":
            if "image" in needs.vertices and "image" not in needs.live:
                images = len(np.unique(examples.images_N))
                batch.image_BE = keep("images", count, images, "image", batch.pixels_BCHW)
            if "teacher_text" in needs.vertices and "teacher_text" not in needs.live:
                texts = len({text for text in examples.teacher_texts if text})
                batch.teacher_BE = keep("teacher texts", count, texts, "teacher_text", batch.teacher_ids_BT)
            if "student_text" in needs.vertices and "encoder" not in needs.live and batch.mask_BT is not None:
                tokens, inputs = int(examples.lengths_N.sum()), int(batch.mask_BT.sum())
                batch.states_BTH = keep("token states", inputs, tokens, "encoder", batch.ids_BT, batch.mask_BT)
        return batch, kept

    share = stage.batch_size // processes
    steps = len(examples) // stage.batch_size * stage.epochs
    size, together = f"{stage.batch_size:,}", min(share, stage.micro_batch or share)
    return Trial(stage, len(examples), steps, size, share, together, sample)


def pairs_trial(stage: TranslationStage, pairs: TranslationRows, model: Any, processes: int) -> Trial:
    """A translation stage; the encoder runs in every step, also where its states would be kept."""
    feed = PairFeed(pairs, model.encoder.tokenizer)
    own = np.flatnonzero(pairs.directions_N == pairs.directions_N[0])

    def sample(count: int) -> tuple[TranslationBatch, list[Kept]]:
        rows = np.random.default_rng(0).choice(own, min(count, len(own)), replace=False)
        return feed.batch(rows).to(model.device), []

    share = max(2, int(stage.batch_tokens / processes / pairs.lengths_N.mean()))
    return Trial(stage, len(pairs), stage.steps, f"{stage.batch_tokens:,} tokens", share, share, sample)


@contextmanager
def _counting(model: nn.Module) -> Iterator[dict[int, int]]:
    """What autograd keeps for the backward pass, beside the weights: storage -> bytes."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def _clock(seconds: float) -> str:
    """A duration, for people."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.3g} s"

"""`projector.init: ridge`: the projector starts as the best linear map, solved from the rows of its first stage."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mclip_kit.data.sequences import blocks_of
from mclip_kit.errors import DataError
from mclip_kit.models.closed_form import Moments, set_best, states_before
from mclip_kit.models.freezing import evaluating
from mclip_kit.train.callbacks.base import Callback, Progress

ROWS = 4096  # of a block


class ClosedForm(Callback):
    """Solves the projector before the first step of the first stage that trains it; lambda is what scores best."""

    def before_stage(self) -> None:
        """Solve, unless the stage is resumed or another one trained the projector before."""
        run, index = self.at.run, self.at.index
        projector = run.recipe.projector
        firsts = [number for number, stage in enumerate(run.recipe.stages) if stage.trains("projector")]
        if projector is None or projector.init != "ridge" or self.at.step or firsts[:1] != [index]:
            return
        moments = _moments(self.at)
        strength, found = set_best(run.model.projector, moments, self._score)
        self.at.log(f"closed form of {moments.rows:,} rows, lambda {strength:g}; scores by lambda: {found}")

    def _score(self) -> float:
        scores = self.at.run.score(self.at.task)
        return -np.inf if scores is None else scores.score


def _moments(at: Progress) -> Moments:
    """Of the stage's rows: the encoder's pooled states, and what the projector shall give."""
    try:
        return Moments.of(_pairs(at))
    except ValueError:
        raise DataError(
            f"stage {at.stage.name}: projector.init: ridge: no row has a text in the teacher's language"
        ) from None


def _pairs(at: Progress) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of states and targets; the targets have length 1, so that no row counts more than another."""
    batches, module, model = at.task.batches, at.module, at.run.model
    with evaluating(module):
        for part in blocks_of(len(batches.rows), ROWS):  # type: ignore[attr-defined]
            batch = batches.batch(np.arange(part.start, part.stop)).to(model.device)
            targets, keep = _targets(module, batch)
            pooled = batch.pooled_BH
            if pooled is None:
                states = batch.states_BTH
                states = model.encoder(batch.ids_BT, batch.mask_BT) if states is None else states
                pooled = model.projector.pool(states, batch.mask_BT)
            if keep.any():
                unit = torch.nn.functional.normalize(targets[keep].float(), dim=-1)
                yield states_before(model.projector, pooled[keep].float()), unit


def _targets(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """The teacher's embeddings of a batch, and which rows have one; the pictures' where the stage has no teacher."""
    if batch.has_teacher_B is not None:
        return module.teacher_text(batch), batch.has_teacher_B
    targets = module.image(batch)
    return targets, torch.ones(len(targets), dtype=torch.bool, device=targets.device)

"""Weights between the start of a fine-tuning and its end (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903)."""

import torch
from torch import Tensor

from mclip_kit import layout
from mclip_kit.train import fsdp
from mclip_kit.train.callbacks.base import Callback
from mclip_kit.train.callbacks.early_stopping import final_score


def interpolate(start: dict[str, Tensor], tuned: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """alpha * tuned + (1 - alpha) * start, weight by weight; section 3 of the paper.

    Weights that did not change stay the same to the bit; integer tensors (counts) are the tuned ones.
    """
    return {
        name: torch.lerp(weight, tuned[name].to(weight), alpha) if weight.is_floating_point() else tuned[name]
        for name, weight in start.items()
    }


class WiseFt(Callback):
    """If the stage has `wise_ft_alpha`: interpolated weights are scored and written to RUN/model-wise_ft.

    `StartWeights` keeps those of the start.
    """

    def after_stage(self) -> None:
        """Score and write the interpolated weights; the model keeps those of the stage's end."""
        at, alpha = self.at, self.at.stage.wise_ft_alpha
        if not alpha:
            return
        start = at.run.read(layout.START).model
        whole = fsdp.full_state(at.run.model)
        end = {name: whole[name].to("cpu", copy=True) for name in start if name in whole}
        at.run.load(interpolate({name: start[name] for name in end}, end, alpha))
        scores = at.run.score(at.task)
        out = at.run.folder / layout.MODEL_WISE_FT
        at.run.save_model(out)
        at.run.load(end)
        line = f"  wise_ft {alpha:g}: in {out}"
        if at.best and at.evaluation and scores:
            known = {"start_score": at.best["start"], "tuned_score": final_score(at.best, at.evaluation)}
            values = {f"wise_ft_{name}": value for name, value in {"score": scores.score, **scores.values}.items()}
            at.run.write(at.index, at.step, {"wise_ft": alpha, **known, **values})
            line += f"; score {scores.score:.1f}, tuned {known['tuned_score']:.1f}, at the start {at.best['start']:.1f}"
        at.run.cache.note(line)

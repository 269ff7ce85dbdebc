"""Which parameters a stage trains, its optimiser and its learning rate."""

import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from mclip_kit.config.stages import STUDENT, Optimizer, Stage
from mclip_kit.errors import RecipeError
from mclip_kit.train.layer_decay import layer_scales

OF_ALL = ("lamb_apex", "adam_fairseq")
"""Optimisers that decay every tensor."""


def trainable(model: nn.Module, patterns: Sequence[str]) -> set[str]:
    """Names of the parameters that a stage trains.

    Args:
        patterns: towers (`student` is encoder and projector), `lora` (the adapters), or globs over parameter names.
    Raises:
        RecipeError: a pattern matches nothing.
    """
    names = [name for name, _ in model.named_parameters()]
    chosen: set[str] = set()
    for pattern in patterns:
        towers = STUDENT if pattern == "student" else ("*.lora_*",) if pattern == "lora" else (pattern,)
        matches = {n for n in names for tower in towers if fnmatchcase(n, tower) or fnmatchcase(n, f"{tower}.*")}
        if not matches:
            raise RecipeError(f"train: {pattern!r} matches no parameter of the model")
        chosen |= matches
    return chosen


def build_optimizer(
    module: nn.Module,
    kind: Optimizer,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    layer_decay: float = 1.0,
) -> torch.optim.Optimizer:
    """An optimiser of the module's trainable parameters.

    Biases, norms and scales have no weight decay, but for the two of mCLIP's released code: `lamb_apex` is apex's
    FusedLAMB, which decays and adapts every tensor and clips the gradient norm at 1 itself, after the loop;
    `adam_fairseq` is fairseq's Adam, which decays every tensor, see `FairseqAdam`.

    Args:
        layer_decay: learning rate of a layer of the encoder as a fraction of that of the next layer, see
            `layer_decay`. A group's `scale` is its share of the rate.
    """
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    scales = layer_scales(module, layer_decay)
    # the encoder has groups of its own: its weights may be sharded, and one group cannot have both kinds
    found: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        decay = weight_decay if parameter.dim() > 1 or kind in OF_ALL else 0.0
        found.setdefault((scales[name], decay, "encoder." in name), []).append(parameter)
    groups = [{"params": ps, "weight_decay": decay, "scale": scale} for (scale, decay, _), ps in found.items()]
    if kind in ("lamb", "lamb_apex"):
        from timm.optim import Lamb  # arXiv 1904.00962

        return Lamb(groups, lr=lr, betas=betas, eps=eps, max_grad_norm=1.0 if kind == "lamb_apex" else None)
    if kind == "adam_fairseq":
        return FairseqAdam(groups, lr=lr, betas=betas, eps=eps, fused=True)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


class FairseqAdam(torch.optim.AdamW):
    """Adam as in fairseq 0.12, whose epsilon is added before the second moment is corrected: m / (sqrt(v) + eps).

    torch adds it to the corrected root. The steps differ while 1 - beta2^t is small and gradients are near epsilon.
    """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step: AdamW's, with an epsilon that gives fairseq's."""
        for group in self.param_groups:
            known = next((self.state[p]["step"] for p in group["params"] if "step" in self.state.get(p, {})), 0)
            group["eps"] = self.defaults["eps"] / math.sqrt(1 - group["betas"][1] ** (int(known) + 1))
        return super().step(closure)


def optimizer_of(module: nn.Module, stage: Stage) -> torch.optim.Optimizer:
    """The optimiser of a stage for the module's trainable parameters."""
    how = stage.optimizer, stage.lr, stage.weight_decay, stage.betas, stage.eps, stage.layer_decay
    return build_optimizer(module, *how)


def set_activation_checkpointing(model: nn.Module, wanted: bool) -> None:
    """Activation checkpointing of the trained towers: layers are computed again in the backward pass, not kept.

    Frozen towers keep nothing, and some of them cannot; they are left as they are.
    """
    for part in model.modules():
        if not wanted or any(parameter.requires_grad for parameter in part.parameters()):
            _switch_checkpointing(part, wanted)


def _switch_checkpointing(part: Any, wanted: bool) -> None:
    inner_is_switched = any(isinstance(inner, PreTrainedModel) for inner in part.modules() if inner is not part)
    if isinstance(part, PreTrainedModel) and part.supports_gradient_checkpointing:
        new = hasattr(part, "activation_checkpointing_enable")
        name = "activation_checkpointing" if new else "gradient_checkpointing"
        getattr(part, f"{name}_{'enable' if wanted else 'disable'}")()
        # transformers makes word states need gradients, and leaves it so: frozen lower layers would be computed again
        part.disable_input_require_grads()
    elif hasattr(part, "set_grad_checkpointing") and not inner_is_switched:
        part.set_grad_checkpointing(wanted)


def cannot_checkpoint(tower: nn.Module) -> str | None:
    """The class of a tower that has no activation checkpointing, or whose switch does nothing; None: it has.

    >>> import torch
    >>> cannot_checkpoint(torch.nn.Linear(2, 2))
    'Linear'
    """
    flags = ("gradient_checkpointing", "grad_checkpointing")
    try:
        for part in tower.modules():
            _switch_checkpointing(part, True)
        has = any(getattr(part, flag, False) for part in tower.modules() for flag in flags)
    except (AssertionError, NotImplementedError, ValueError):  # as towers of timm say that they cannot
        has = False
    set_activation_checkpointing(tower, False)
    inner = (getattr(tower, name) for name in ("model", "trunk", "transformer") if hasattr(tower, name))
    return None if has else type(next(inner, tower)).__name__


def learning_rate(
    peak: float,
    schedule: Literal["cosine", "inverse_sqrt", "constant"],
    warmup: int,
    total: int,
    first: float | None = None,
) -> Callable[[int], float]:
    """The learning rate of step 0, 1, ..., total - 1.

    Linear warm-up, then: `cosine` down to 0; `inverse_sqrt`, peak * sqrt(warmup / step) (Vaswani et al. 2017,
    section 5.3, as in fairseq); `constant`.

    Args:
        first: the rate of step 0, from which the warm-up rises to the peak at step `warmup` (fairseq's
            `warmup_init_lr`); None: it rises from peak / warmup, and has the peak one step earlier.
    """

    def at(step: int) -> float:
        if step < warmup and first is not None:
            return first + (peak - first) * step / warmup
        if step < warmup:
            return peak * (step + 1) / warmup
        if schedule == "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
        if schedule == "inverse_sqrt":
            return peak * math.sqrt(max(1, warmup) / max(1, step))
        return peak

    return at

"""The encoder's weights sharded among processes, for an encoder that is too large for one device.

Each process keeps a part of every weight of the encoder, of its gradient and of its optimiser state; a layer is whole
only while it is used (ZeRO-3, arXiv 1910.02054; torch's fully_shard). The other weights are replicated.
"""

import math
from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

BELOW = 0.999  # of the largest norm; a gradient whose norm is nearer may be rounded to one that is scaled


def shard_encoder(encoder: nn.Module) -> None:
    """Shard the weights of an encoder, layer by layer."""
    from torch.distributed.fsdp import fully_shard  # here, for most runs do without it

    layers = set(getattr(encoder.model, "_no_split_modules", None) or ())
    for part in encoder.modules():
        if type(part).__name__ in layers:
            fully_shard(part)
    fully_shard(encoder)


def is_sharded(module: nn.Module) -> bool:
    """Whether some weights of a module are sharded."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def prepare(accelerator: Accelerator, module: nn.Module) -> Any:
    """The module in mixed precision, its gradients averaged over processes by DDP; see `replicated`."""
    alone = is_sharded(module) or not any(parameter.requires_grad for parameter in module.parameters())
    return accelerator.prepare_model(module, evaluation_mode=alone)


def replicated(module: nn.Module) -> list[nn.Parameter]:
    """The trained weights that are whole, in a module where others are sharded; without sharded ones, none."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [parameter for parameter in trained if not isinstance(parameter, DTensor)] if is_sharded(module) else []


def average_gradients(accelerator: Accelerator, parameters: Sequence[nn.Parameter]) -> None:
    """Average the gradients of `replicated` weights over all processes: DDP would not know which to leave out."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.copy_(accelerator.reduce(parameter.grad, "mean"))


def clip_gradients(accelerator: Accelerator, parameters: Sequence[nn.Parameter], most: float | None) -> float:
    """Scale gradients so that their norm is at most `most`, and return the norm that they had.

    Those of a smaller norm are not touched: multiplying each of them by one would take as long as the norm.
    """
    most = math.inf if most is None else most
    given = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if any(isinstance(gradient, DTensor) for gradient in given):
        return number(accelerator.clip_grad_norm_(parameters, most))
    accelerator.unscale_gradients()
    norm = get_total_norm(given)
    value = float(norm)
    if not value < BELOW * most:
        clip_grads_with_norm_(parameters, most, norm)
    return value


def number(value: Tensor) -> float:
    """A scalar, which may be sharded; all processes must ask for it."""
    return float(value.full_tensor() if isinstance(value, DTensor) else value)


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model in whole tensors.

    All processes must ask for it; of a sharded model only the main process gets it, on the CPU, and the others nothing.
    """
    state: dict[str, Any] = get_model_state_dict(model, options=_options(model))
    return state


def load_full_state(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load whole tensors, which need not be all of the model's; those of the main process if the model is sharded."""
    set_model_state_dict(model, dict(tensors), options=_options(model, load=True))


def full_optimizer_state(module: nn.Module, optimizer: Any) -> dict[str, Any]:
    """The state of an optimiser in whole tensors, by names of parameters. All processes must ask for it."""
    return get_optimizer_state_dict(module, optimizer.optimizer, options=_options(module))


def load_optimizer_state(module: nn.Module, optimizer: Any, state: dict[str, Any]) -> None:
    """Load what `full_optimizer_state` gave, with any number of processes."""
    set_optimizer_state_dict(module, optimizer.optimizer, state, options=_options(module, load=True))


def _options(module: nn.Module, load: bool = False) -> StateDictOptions:
    whole = is_sharded(module)
    return StateDictOptions(
        full_state_dict=whole, cpu_offload=whole and not load, broadcast_from_rank0=whole and load, strict=False
    )

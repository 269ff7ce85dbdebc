"""The encoder's weights dealt out among processes, for an encoder that is too large to lie on every device.

Each process keeps a part of every weight of the encoder, and of its gradient and moments; a layer is whole only while
it is used (ZeRO-3, arXiv 1910.02054; torch's fully_shard). The small rest is copied on every process, as without.
"""

from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(encoder: nn.Module) -> None:
    """Deal out an encoder's weights, layer by layer."""
    layers = set(getattr(encoder.model, "_no_split_modules", None) or ())
    for part in encoder.modules():
        if type(part).__name__ in layers:
            fully_shard(part)
    fully_shard(encoder)


def prepare(accelerator: Accelerator, module: nn.Module) -> Any:
    """A module whose copied weights have the same gradients on all processes; dealt-out weights see to themselves."""
    dealt = [name for name, parameter in module.named_parameters() if isinstance(parameter, DTensor)]
    module._ddp_params_and_buffers_to_ignore = dealt  # type: ignore[assignment]
    copied = (p for name, p in module.named_parameters() if name not in set(dealt))
    return accelerator.prepare_model(module, evaluation_mode=not any(p.requires_grad for p in copied))


def whole(value: Any) -> Any:
    """A value of a state, where dealt-out tensors are put together on the CPU; all processes must ask for it."""
    if isinstance(value, dict):
        return {name: whole(inner) for name, inner in value.items()}
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def dealt(tensors: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """Whole tensors, dealt out where the tensor of that name is."""
    return {name: _dealt(tensor, like.get(name)) for name, tensor in tensors.items()}


def shard_optimizer_state(state: dict[str, Any], optimizer: Any) -> dict[str, Any]:
    """A whole state of an optimiser, dealt out as its parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        number: {name: _dealt(value, parameters[number]) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": moments}


def _dealt(value: Any, like: Any) -> Any:
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)

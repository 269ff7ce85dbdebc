"""What several processes of one run agree on: the main process reads, writes and decides, and the others wait for it.

Only the main process touches the run folder, so the processes need no common disk.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from mclip_kit.errors import PeerError

T = TypeVar("T")


def on_main(work: Callable[[], T]) -> T:
    """Do some work on the main process alone; the others wait for it, and get its result.

    Args:
        work: gives a picklable value; tensors in dicts, lists and tuples are sent one by one.
    Raises:
        PeerError: (in the other processes) the work raised an error, which the main process raises as it is.
    """
    if not torch.distributed.is_initialized():
        return work()
    if not PartialState().is_main_process:
        (failed,) = broadcast_object_list([None])
        if failed is not None:
            raise PeerError(f"the main process stopped: {failed}")
        return _shared(None)
    try:
        result = work()
    except Exception as error:
        broadcast_object_list([str(error) or type(error).__name__])
        raise
    broadcast_object_list([None])
    return _shared(result)


def on_all(work: Callable[[], T]) -> list[T]:
    """Do some work in every process; each gets the results of all, in the order of the processes.

    Args:
        work: gives a picklable value; what it does must not wait for other processes.
    Raises:
        PeerError: the work raised an error in another process, which raises it as it is.
    """
    if not torch.distributed.is_initialized():
        return [work()]
    try:
        result, failed = work(), None
    except Exception as error:
        gather_object([(None, str(error) or type(error).__name__)])
        raise
    found = gather_object([(result, failed)])
    for _, failed in found:
        if failed is not None:
            raise PeerError(f"another process stopped: {failed}")
    return [result for result, _ in found]


def _shared(value: Any) -> Any:
    """The main process's value, in all processes; tensors arrive on the CPU."""
    leaves, spec = tree_flatten(value)
    sent = [torch.empty_like(leaf, device="meta") if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    received, spec = broadcast_object_list([sent, spec])
    for number, leaf in enumerate(received):
        if isinstance(leaf, Tensor):
            received[number] = _send(leaves[number] if PartialState().is_main_process else None, leaf)
    return value if PartialState().is_main_process else tree_unflatten(received, spec)


def _send(tensor: Tensor | None, like: Tensor) -> Tensor:
    """A tensor of the main process, as bytes: every backend can send those."""
    device = PartialState().device
    whole = torch.empty(like.shape, dtype=like.dtype, device=device) if tensor is None else tensor.detach().to(device)
    data = whole.contiguous().reshape(-1).view(torch.uint8)
    if data.numel():
        torch.distributed.broadcast(data, 0)
    return data.view(like.dtype).reshape(like.shape).cpu()

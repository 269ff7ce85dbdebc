"""Weights that are non-finite (NaN or inf), as half precision or a damaged file leaves them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mclip_kit.errors import CheckpointError


def first_nonfinite(module: nn.Module) -> str | None:
    """Name of the first weight, or buffer that is saved, that has a NaN or inf; None: all are finite.

    >>> from torch import nn
    >>> first_nonfinite(nn.Linear(2, 2)) is None
    True
    """
    return next((name for name, tensor in module.state_dict().items() if not _is_finite(tensor)), None)


def check_finite(towers: Mapping[str, nn.Module]) -> None:
    """Check the weights of towers before a run.

    Args:
        towers: tower and name of its weights, as `encoder hf:DIR` -> the tower.
    Raises:
        CheckpointError: a weight is non-finite; the message names the tower, its weights' place, and the weight.
    """
    for where, tower in towers.items():
        name = first_nonfinite(tower)
        if name:
            raise CheckpointError(
                f"{where}: {name.removeprefix('model.')} is not finite (NaN or inf): its file is damaged, or was "
                "written in half precision, where large numbers become inf; get it again, in float32"
            )


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    if torch.isfinite(local.detach().sum()):  # no copy; NaN and inf stay in a sum
        return True
    return bool(torch.isfinite(local).all())  # a sum of large numbers may be inf too

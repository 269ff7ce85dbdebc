"""Layer-wise learning rates of the encoder, whatever its layers are called."""

from collections.abc import Iterator

from torch import nn

from mclip_kit.errors import RecipeError
from mclip_kit.models.text_encoder import Encoder

Depths = dict[str, int]
"""Name of a parameter -> 0 for what comes before the first layer, 1 for the first layer, and so on."""


def layer_scales(module: nn.Module, layer_decay: float) -> dict[str, float]:
    """Name of a parameter -> its share of the learning rate: less in lower layers of the encoder, 1 elsewhere.

    The word table and what else comes before the layers is below the first one; what comes after them, such as a last
    norm, has the full rate (BEiT, arXiv 2106.08254).

    Args:
        module: has an `Encoder` somewhere inside; one without has the full rate everywhere.
        layer_decay: learning rate of a layer as a fraction of that of the next layer.
    Raises:
        RecipeError: the encoder has no layers of its own, as where they share their weights.
    """
    scales = {name: 1.0 for name, _ in module.named_parameters()}
    if layer_decay == 1:
        return scales
    for prefix, part in module.named_modules():
        if isinstance(part, Encoder):
            start = f"{prefix}." if prefix else ""
            depths, layers = _depths(part)
            scales |= {f"{start}{name}": layer_decay ** (layers - depth) for name, depth in depths.items()}
    return {name: scales[name] for name, _ in module.named_parameters()}


def _depths(encoder: Encoder) -> tuple[Depths, int]:
    """The depth of every parameter of an encoder, and its number of layers."""
    layers = getattr(encoder.config, "num_hidden_layers", 0)
    starts = {f"{path}.": depth for items in _lists(encoder, layers) for depth, path in enumerate(items, 1)}
    if not starts:
        raise RecipeError(
            f"layer_decay: the encoder, of type {encoder.config.model_type}, has no list of {layers} layers with "
            "weights of their own; set layer_decay to 1"
        )
    depths, before = Depths(), True
    for name, _ in encoder.named_parameters():
        found = next((depth for start, depth in starts.items() if name.startswith(start)), None)
        before = before and found is None
        depths[name] = (0 if before else layers) if found is None else found
    return depths, layers


def _lists(encoder: nn.Module, layers: int) -> Iterator[list[str]]:
    """Paths of the layers: lists of so many modules that are in no other list. XLM has several, one a kind of part."""
    inside: tuple[str, ...] = ()
    for path, part in encoder.named_modules():
        if isinstance(part, nn.ModuleList) and not path.startswith(inside or ("\0",)):
            inside += (f"{path}.",)
            items = list(_items(path, part))
            if len(items) == layers and len({id(encoder.get_submodule(item)) for item in items}) == layers:
                yield items


def _items(path: str, modules: nn.ModuleList) -> Iterator[str]:
    """Paths of the modules of a list; of a list of lists (Funnel), of the inner ones."""
    for number, part in enumerate(modules):
        if isinstance(part, nn.ModuleList):
            yield from _items(f"{path}.{number}", part)
        else:
            yield f"{path}.{number}"

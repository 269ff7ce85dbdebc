"""Low-rank adapters in the encoder, by the package peft (LoRA: Hu et al. 2021, arXiv 2106.09685)."""

from collections.abc import Sequence

from torch import nn

from mclip_kit.errors import RecipeError, first_line


def adapt(encoder: nn.Module, rank: int, alpha: int, dropout: float, targets: Sequence[str]) -> None:
    """Add adapters to an encoder's linear layers; before training they do not change its outputs.

    Args:
        rank: rank of the update of each layer's weight.
        alpha: the update is multiplied by alpha / rank.
        dropout: dropout probability before an adapter, in training mode.
        targets: layer names of transformers: `query`, `value`, `key`, `dense`; in T5 `q`, `v`, `k`, `o`.
    Raises:
        RecipeError: peft is not installed, or no layer has such a name.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError:
        raise RecipeError("lora needs peft: pip install 'peft>=0.17'") from None
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets))
    try:
        inject_adapter_in_model(config, encoder)
    except ValueError as error:
        linear = {name.rpartition(".")[2] for name, part in encoder.named_modules() if isinstance(part, nn.Linear)}
        if linear.isdisjoint(targets):
            what = f"no layer is called {', '.join(targets)}; the encoder's are {', '.join(sorted(linear))}"
            raise RecipeError(f"lora.targets: {what}") from None
        raise RecipeError(f"lora.targets: {first_line(error)}") from None


def merge(encoder: nn.Module) -> None:
    """Add the adapters to the weights and remove them: the encoder is a standard one again."""
    for name, layer in list(encoder.named_modules()):
        if hasattr(layer, "lora_A") and hasattr(layer, "get_base_layer"):
            layer.merge()
            above, _, own = name.rpartition(".")
            setattr(encoder.get_submodule(above), own, layer.get_base_layer())

"""Low-rank adapters in the encoder, by the package peft (LoRA: Hu et al. 2021, arXiv 2106.09685)."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from mclip_kit.errors import RecipeError, first_line

QUERY_VALUE = (
    ("query", "value"),  # BERT, XLM-R, ELECTRA
    ("query_proj", "value_proj"),  # DeBERTa
    ("q_proj", "v_proj"),  # Qwen, Gemma, Llama, EuroBERT
    ("q_lin", "v_lin"),  # DistilBERT, XLM
    ("q", "v"),  # T5, MPNet
    ("Wqkv",),  # ModernBERT: query, key and value in one
    ("c_attn",),  # GPT-2: the same
)
"""What classes of transformers call the maps that give an attention's queries and values."""


def adapt(encoder: nn.Module, rank: int, alpha: int, dropout: float, targets: Sequence[str] | None = None) -> None:
    """Add adapters to an encoder's linear layers; before training they do not change its outputs.

    Args:
        rank: rank of the update of each layer's weight.
        alpha: the update is multiplied by alpha / rank.
        dropout: dropout probability before an adapter, in training mode.
        targets: layer names of transformers, such as `query`, `value`, `key`, `dense`; in T5 `q`, `v`, `k`, `o`. None:
            the first names of `QUERY_VALUE` that the encoder has.
    Raises:
        RecipeError: peft is not installed, or no layer has such a name.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError:
        raise RecipeError("lora needs peft: pip install 'peft>=0.17'") from None
    names = sorted(targets or query_value(encoder))
    linear = _linear(encoder)
    if not linear.keys() & set(names):
        what = f"no layer is called {', '.join(names)}; the encoder's are {', '.join(sorted(linear))}"
        raise RecipeError(f"lora.targets: {what}")
    turned = any(isinstance(linear.get(name), Conv1D) for name in names)
    how: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "fan_in_fan_out": turned}
    try:
        # peft asks classes of transformers that rename weights (Nomic, Jina) for more than a module has
        inject_adapter_in_model(LoraConfig(target_modules=names, **how), getattr(encoder, "model", encoder))
    except ValueError as error:
        raise RecipeError(f"lora.targets: {first_line(error)}") from None


def query_value(encoder: nn.Module) -> tuple[str, ...]:
    """The names of an encoder's query and value maps.

    >>> from torch import nn
    >>> query_value(nn.ModuleDict({"q_lin": nn.Linear(2, 2), "k_lin": nn.Linear(2, 2), "v_lin": nn.Linear(2, 2)}))
    ('q_lin', 'v_lin')

    Raises:
        RecipeError: it has none under a name that is known.
    """
    linear = _linear(encoder)
    for names in QUERY_VALUE:
        if linear.keys() >= set(names):
            return names
    kind = getattr(getattr(encoder, "config", None), "model_type", type(encoder).__name__)
    known = ", ".join("/".join(names) for names in QUERY_VALUE)
    raise RecipeError(
        f"lora.targets: no layers of this encoder, of type {kind}, are called {known}; name some of "
        f"{', '.join(sorted(linear)) or 'another encoder'}"
    )


def _linear(encoder: nn.Module) -> dict[str, nn.Module]:
    """Last part of a linear layer's name -> such a layer."""
    kinds = (nn.Linear, Conv1D)
    return {name.rpartition(".")[2]: part for name, part in encoder.named_modules() if isinstance(part, kinds)}


def merge(encoder: nn.Module) -> None:
    """Add the adapters to the weights and remove them: the encoder is a standard one again."""
    for name, layer in list(encoder.named_modules()):
        if hasattr(layer, "lora_A") and hasattr(layer, "get_base_layer"):
            layer.merge()
            above, _, own = name.rpartition(".")
            setattr(encoder.get_submodule(above), own, layer.get_base_layer())

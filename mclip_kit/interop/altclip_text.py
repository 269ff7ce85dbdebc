"""A student of head altclip as transformers' AltCLIPTextModel: XLM-R, a LayerNorm, a linear map of all token states.

Shapes: B batch, T tokens, F width of the mapped token states (`projector.hidden`).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mclip_kit.files import write_json
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.special_tokens import save_as_text

ENCODERS = ("xlm-roberta", "roberta")
EPSILON = 1e-5  # of the LayerNorm of head altclip
SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size"),
    *("layer_norm_eps", "initializer_range", "pad_token_id", "bos_token_id", "eos_token_id"),
)


def kind_of(model: MultilingualClip) -> str:
    """The kind of a model's projector, as in a recipe."""
    projector: Any = model.settings["projector"]
    return str(projector["kind"])


def misfit(model: MultilingualClip) -> str | None:
    """Why AltCLIPTextModel cannot be a student of head altclip, in one sentence; None: it can."""
    encoder, head = model.encoder.config, _head(model)
    if encoder.model_type not in ENCODERS:
        return (
            f"for head altclip transformers takes {', '.join(ENCODERS)} encoders, not {encoder.model_type}; export to "
            "sentence-transformers"
        )
    if encoder.layer_norm_eps != head[0].eps:
        return (
            f"AltCLIPModel has one layer_norm_eps, this encoder has {encoder.layer_norm_eps} and its head "
            f"{head[0].eps}; train with projector.kind: linear"
        )
    return None


def sizes(model: MultilingualClip) -> dict[str, Any]:
    """What AltCLIPTextConfig is made from."""
    encoder = model.encoder.config
    return {name: getattr(encoder, name) for name in SIZES} | {"project_dim": _head(model)[1].out_features}


def load_text(text: Any, model: MultilingualClip) -> None:
    """Load a student's weights into an AltCLIPTextModel of its `sizes`."""
    head = _head(model)
    for module, own in ((text.roberta, model.encoder.model), (text.pre_LN, head[0]), (text.transformation, head[1])):
        load(module, {name: tensor.detach().cpu() for name, tensor in own.state_dict().items()})


def cleaning(model: MultilingualClip, library: str) -> list[str]:
    """What a library that does not repair texts does otherwise than the model, as a note of a format; or nothing."""
    if model.text_cleaning == "none":
        return []
    return [
        "Texts: the model repairs mojibake, curly quotes, HTML escapes and white space (text_cleaning: "
        f"{model.text_cleaning}), {library} does not."
    ]


def _head(model: MultilingualClip) -> Any:
    """LayerNorm, linear map to F, projection without a bias."""
    return model.projector.head


def load(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load every weight; AltCLIP's encoder calls its list of layers `layers`, XLM-R `layer`."""
    names = module.state_dict()
    renamed = {name.replace("encoder.layer.", "encoder.layers."): tensor for name, tensor in state.items()}
    module.load_state_dict(renamed if names.keys() == renamed.keys() else dict(state))


def settle_tokenizer(folder: Path, tokens: int) -> None:
    """Names of special tokens in a text are text; `truncation=True` cuts at `tokens`."""
    save_as_text(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, settings | {"model_max_length": tokens, "padding_side": "right", "truncation_side": "right"})

"""Lower layers of the encoder learn more slowly, whatever they are called."""

from typing import Any

import pytest
import transformers
from torch import nn

from mclip_kit.data.tokenizer import PAD
from mclip_kit.errors import RecipeError
from mclip_kit.models.text_encoder import Encoder
from mclip_kit.train.layer_decay import layer_scales

SIZES = {"vocab_size": 30, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
FFN = SIZES | {"intermediate_size": 16}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MODERN = FFN | IDS | {"cls_token_id": 1, "sep_token_id": 2}
OWN = {"n_layers": 2, "n_heads": 2}
FUNNEL = {"block_sizes": [1, 2], "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 16}
KINDS: dict[str, tuple[str, dict[str, Any], str, str, str]] = {
    # its class, its sizes, and parameters below the layers, in the first one, and in the last one or after it
    "XLMRoberta": ("Model", FFN, "embeddings.word", "encoder.layer.0.", "encoder.layer.1."),
    "DistilBert": ("Model", OWN | {"dim": 16, "hidden_dim": 16}, "embeddings.word", "er.layer.0.", "er.layer.1."),
    "ModernBert": ("Model", MODERN, "embeddings.tok", "layers.0.", "final_norm"),
    "Electra": ("Model", FFN | {"embedding_size": 8}, "embeddings_project", "encoder.layer.0.", "encoder.layer.1."),
    "T5": ("EncoderModel", SIZES | {"d_model": 16, "d_kv": 8, "d_ff": 16}, "shared", "block.0.", "final_layer_norm"),
    "XLM": ("Model", OWN | {"emb_dim": 16}, "layer_norm_emb", "attentions.0.", "ffns.1."),
    "GPT2": ("Model", {"n_embd": 16, "n_layer": 2, "n_head": 2}, "wte", "h.0.", "ln_f"),
    "Qwen2": ("Model", FFN | {"num_key_value_heads": 2}, "embed_tokens", "layers.0.", "model.norm."),
    "DebertaV2": ("Model", FFN, "embeddings.word", "encoder.layer.0.", "encoder.layer.1."),
    "MPNet": ("Model", FFN, "embeddings.word", "encoder.layer.0.", "relative_attention_bias"),
}


def encoder(kind: str, class_: str, sizes: dict[str, Any]) -> Encoder:
    config = getattr(transformers, f"{kind}Config")(**{"vocab_size": 30, **sizes})
    return Encoder(getattr(transformers, f"{kind}{class_}")(config), tokenizer=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_lower_layers_learn_more_slowly(kind: str) -> None:
    class_, sizes, below, first, last = KINDS[kind]
    module = nn.ModuleDict({"encoder": encoder(kind, class_, sizes), "projector": nn.Linear(2, 2)})
    scales = layer_scales(module, 0.5)
    assert list(scales) == [name for name, _ in module.named_parameters()]
    for part, share in ((below, 0.25), (first, 0.5), (last, 1.0), ("projector.", 1.0)):
        assert {scale for name, scale in scales.items() if part in name} == {share}
    assert set(layer_scales(module, 1.0).values()) == {1.0}


def test_blocks_of_layers_are_one_list_of_layers() -> None:
    scales = layer_scales(encoder("Funnel", "BaseModel", FUNNEL), 0.5)
    shares = [next(s for name, s in scales.items() if f"blocks.{place}." in name) for place in ("0.0", "1.0", "1.1")]
    assert shares == [0.25, 0.5, 1.0]


ALBERT = FFN | {"embedding_size": 8, "pad_token_id": PAD}


@pytest.mark.parametrize("groups", [{"num_hidden_groups": 1}, {"num_hidden_groups": 1, "inner_group_num": 2}])
def test_layers_that_share_their_weights_are_refused(groups: dict[str, int]) -> None:
    with pytest.raises(RecipeError, match=r"of type albert, has no list of 2 layers .* set layer_decay to 1"):
        layer_scales(encoder("Albert", "Model", ALBERT | groups), 0.5)

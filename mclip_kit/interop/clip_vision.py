"""CLIP's vision transformer in transformers' layout and back, with the image processor that goes with it.

Shapes: V width of the vision transformer, D embedding, E CLIP width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor, nn

from mclip_kit.data.transforms import picture_size
from mclip_kit.errors import CheckpointError
from mclip_kit.models.clip import Clip
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.safe_load import StateDict

EPSILON = 1e-5
ADVICE = "train with a ViT of CLIP's layout, such as teacher.model: ViT-B-32"
OUTER = {
    "class_embedding": "embeddings.class_embedding",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    **{f"ln_pre.{part}": f"pre_layrnorm.{part}" for part in ("weight", "bias")},
    **{f"ln_post.{part}": f"post_layernorm.{part}" for part in ("weight", "bias")},
}
INNER = {
    f"{ours}.{part}": f"{theirs}.{part}"
    for ours, theirs in (
        ("ln_1", "layer_norm1"),
        ("ln_2", "layer_norm2"),
        ("attn.out_proj", "self_attn.out_proj"),
        ("mlp.c_fc", "mlp.fc1"),
        ("mlp.c_proj", "mlp.fc2"),
    )
    for part in ("weight", "bias")
}
"""open_clip's name -> transformers', outside of the layers and in a layer."""
INTERPOLATIONS = {"bilinear": 2, "bicubic": 3}
"""open_clip's name -> PIL's number."""


def vision_config(visual: nn.Module) -> dict[str, Any]:
    """Arguments of CLIPVisionConfig, and of AltCLIPVisionConfig, for an image tower.

    Raises:
        CheckpointError: the tower has another layout; the message says what to train instead.
    """
    if not isinstance(visual, VisionTransformer):
        kind = {"ModifiedResNet": "a ResNet", "TimmModel": "a tower of timm"}.get(type(visual).__name__, "of its own")
        raise CheckpointError(f"the image tower is {kind}, transformers' is a vision transformer; {ADVICE}")
    blocks, (high, wide), (patch, across) = visual.transformer.resblocks, visual.image_size, visual.patch_size
    activation = _activation(blocks[0].mlp.gelu)
    norms = [module for module in visual.modules() if isinstance(module, nn.LayerNorm)]
    fits = set(visual.state_dict()) == _names(len(blocks)) and (high, patch) == (wide, across)
    fits &= visual.pool_type == "tok" and visual.attn_pool is None and all(norm.eps == EPSILON for norm in norms)
    if not fits or not activation:
        raise CheckpointError(f"the image tower is a vision transformer with another layout than CLIP's; {ADVICE}")
    return {
        "hidden_size": visual.conv1.out_channels,
        "intermediate_size": blocks[0].mlp.c_fc.out_features,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": blocks[0].attn.num_heads,
        "image_size": high,
        "patch_size": patch,
        "hidden_act": activation,
        "layer_norm_eps": EPSILON,
    }


def _activation(module: nn.Module) -> str:
    if isinstance(module, QuickGELU):
        return "quick_gelu"
    if isinstance(module, nn.GELU):
        return {"none": "gelu", "tanh": "gelu_pytorch_tanh"}.get(module.approximate, "")
    return ""


def _names(layers: int) -> set[str]:
    packed = {"attn.in_proj_weight", "attn.in_proj_bias"}
    inner = {f"transformer.resblocks.{n}.{name}" for n in range(layers) for name in INNER.keys() | packed}
    return {"proj", *OUTER, *inner}


def vision_state(model: MultilingualClip) -> tuple[StateDict, Tensor]:
    """Weights under transformers' names, and the projection (D, V), into which a linear clip projector is multiplied.

    The image tower must have a `vision_config`.
    """
    state = {name: tensor.detach().cpu() for name, tensor in model.image.state_dict().items()}
    found = {theirs: state[ours] for ours, theirs in OUTER.items()}
    for number in range(len(model.image.transformer.resblocks)):  # type: ignore[union-attr,arg-type]
        ours, theirs = f"transformer.resblocks.{number}.", f"encoder.layers.{number}."
        found |= {theirs + name: state[ours + own] for own, name in INNER.items()}
        for kind in ("weight", "bias"):
            packed = state[f"{ours}attn.in_proj_{kind}"].chunk(3)
            found |= {f"{theirs}self_attn.{n}_proj.{kind}": part for n, part in zip("qkv", packed, strict=True)}
    projection_DV = state["proj"].T
    if isinstance(model.clip_projector, nn.Linear):
        projection_DV = (model.clip_projector.weight.detach().cpu().double() @ projection_DV.double()).float()
    return found, projection_DV


def open_clip_vision(
    config: Any, state: Mapping[str, Tensor], projection_EV: Tensor
) -> tuple[dict[str, Any], StateDict]:
    """The way back: open_clip's `vision_cfg`, and the tower's weights under open_clip's names.

    Args:
        config: CLIPVisionConfig or AltCLIPVisionConfig.
        state: weights under transformers' names.
        projection_EV: the visual projection's weight.
    Raises:
        CheckpointError: open_clip has no such vision transformer.
    """
    known = config.hidden_act in ("quick_gelu", "gelu", "gelu_pytorch_tanh") and config.layer_norm_eps == EPSILON
    if not known or config.num_channels != 3:
        raise CheckpointError(
            f"its image tower has hidden_act {config.hidden_act}, layer_norm_eps {config.layer_norm_eps} and "
            f"{config.num_channels} channels; open_clip's have quick_gelu or gelu, {EPSILON} and 3"
        )
    cfg = {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "head_width": config.hidden_size // config.num_attention_heads,
        "mlp_ratio": config.intermediate_size / config.hidden_size,
    }
    if config.hidden_act == "gelu_pytorch_tanh":
        cfg["act_kwargs"] = {"approximate": "tanh"}
    found = {ours: state[theirs] for ours, theirs in OUTER.items()} | {"proj": projection_EV.T}
    for number in range(config.num_hidden_layers):
        ours, theirs = f"transformer.resblocks.{number}.", f"encoder.layers.{number}."
        found |= {ours + name: state[theirs + other] for name, other in INNER.items()}
        for kind in ("weight", "bias"):
            found[f"{ours}attn.in_proj_{kind}"] = torch.cat(
                [state[f"{theirs}self_attn.{n}_proj.{kind}"] for n in "qkv"]
            )
    return cfg, {name: tensor.detach().float().contiguous() for name, tensor in found.items()}


def processor_config(clip: Clip) -> dict[str, Any]:
    """preprocessor_config.json of CLIPImageProcessor for a CLIP's pictures.

    Raises:
        CheckpointError: it cannot prepare pictures in this way.
    """
    how = clip.preprocess
    high, wide = picture_size(how)
    mode = how.get("resize_mode") or "shortest"
    if mode == "longest" or (mode == "shortest" and high != wide):
        raise CheckpointError(
            f"transformers' CLIP image processor cannot resize as this CLIP does ({mode}, {high}x{wide}); {ADVICE}"
        )
    squash = mode == "squash"
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": high, "width": wide} if squash else {"shortest_edge": high},
        "resample": INTERPOLATIONS.get(how.get("interpolation") or "bicubic", 3),
        "do_center_crop": not squash,
        "crop_size": {"height": high, "width": wide},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(how["mean"]),
        "image_std": list(how["std"]),
    }


def preprocess(processor: Any, image_size: int) -> dict[str, Any]:
    """The way back: open_clip's preprocess config of a CLIPImageProcessor.

    Raises:
        CheckpointError: open_clip's transform cannot do the same.
    """
    size, crop = dict(processor.size), dict(processor.crop_size or {})
    size = {side: value for side, value in size.items() if value}
    names = {number: name for name, number in INTERPOLATIONS.items()}
    squash = size == {"height": image_size, "width": image_size}
    shortest = size == {"shortest_edge": image_size} and processor.do_center_crop
    shortest &= {crop.get(side) for side in ("height", "width")} == {image_size}
    usual = processor.do_resize and processor.do_rescale and processor.do_normalize
    usual &= abs(processor.rescale_factor * 255 - 1) < 1e-6 and int(processor.resample) in names
    if not usual or not (squash or shortest):
        raise CheckpointError(
            f"its image processor resizes to {size} and crops to {crop}; open_clip resizes and crops to the image "
            f"tower's {image_size}"
        )
    return {
        "size": (image_size, image_size),
        "mode": "RGB",
        "mean": tuple(processor.image_mean),
        "std": tuple(processor.image_std),
        "interpolation": names[int(processor.resample)],
        "resize_mode": "squash" if squash else "shortest",
        "fill_color": 0,
    }

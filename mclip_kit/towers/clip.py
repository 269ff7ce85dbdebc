"""The CLIP that is given: open_clip's towers, tokenizer and image transform, which always travel together."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import get_model_config, get_pretrained_cfg
from open_clip.model import set_model_preprocess_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from mclip_kit.errors import CheckpointError, RecipeError, first_line
from mclip_kit.files import write_json, write_whole
from mclip_kit.recipe import suggest
from mclip_kit.towers.hub import MissingWeights, look
from mclip_kit.towers.mode import evaluating

WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"


class Clip(nn.Module):
    """Image tower and text tower of a CLIP, with what belongs to them.

    Attributes:
        model: open_clip's CustomTextCLIP; `.visual` maps pixels (B, 3, S, S) to (B, E), `.text` ids (B, T) to (B, E).
        config: open_clip's model config.
        preprocess: open_clip's preprocess config (size, mean, std, interpolation, resize_mode).
        tokenize: list of texts -> ids (B, T).
    """

    def __init__(self, model: nn.Module, config: dict[str, Any], tokenize: Callable[[list[str]], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.preprocess = dict(model.visual.preprocess_cfg)  # type: ignore[union-attr,arg-type]
        self.transform = image_transform_v2(PreprocessCfg(**self.preprocess), is_train=False)
        self.tokenize = tokenize

    @property
    def width(self) -> int:
        """Width E of the shared embedding."""
        return int(self.config["embed_dim"])

    def save(self, folder: Path) -> None:
        """Write a folder that open_clip loads as `local-dir:FOLDER`."""
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        with write_whole(folder / WEIGHTS) as temporary:
            save_file(state, temporary, {"format": "pt"})
        config = {**self.config, "custom_text": True}
        write_json(folder / CONFIG, {"model_cfg": config, "preprocess_cfg": self.preprocess})


def build_clip(model: str | dict[str, Any], weights: str | None = None) -> Clip:
    """Build open_clip's towers, separated into image and text.

    Args:
        model: an open_clip name, `local-dir:DIR`, `hf-hub:ORG/NAME` or a model config.
        weights: a pretrained tag or a file; `random` and `train` both start from random weights.
    Raises:
        RecipeError: open_clip knows no such model or tag.
        CheckpointError: the weights are neither here nor to be had; the message says how to provide them.
    """
    if isinstance(model, dict):
        return _from_config(model)
    if model.startswith("local-dir:"):
        return _from_folder(Path(model.removeprefix("local-dir:")))
    return _from_name(model, None if weights in ("random", "train") else weights)


def _from_config(config: dict[str, Any]) -> Clip:
    try:
        model = open_clip.CustomTextCLIP(**{k: v for k, v in config.items() if k != "custom_text"})
        preprocess = PreprocessCfg(size=model.visual.image_size)
        set_model_preprocess_cfg(model, asdict(preprocess))
        with evaluating(model):  # sizes that do not fit together show only when a picture comes
            model.visual(torch.zeros(1, *preprocess.input_size))
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, AssertionError, RuntimeError) as error:
        raise RecipeError(f"teacher.model: open_clip cannot build this config: {first_line(error)}") from None
    return Clip(model, config, _simple_tokenizer(config))


def _simple_tokenizer(config: dict[str, Any]) -> Callable[[list[str]], Tensor]:
    text = config["text_cfg"]
    if text.get("hf_tokenizer_name"):
        tokenizer: Any = open_clip.HFTokenizer(text["hf_tokenizer_name"], context_length=text.get("context_length", 77))
    else:
        tokenizer = open_clip.SimpleTokenizer(context_length=text.get("context_length", 77))
    return lambda texts: tokenizer(texts)


def _from_folder(folder: Path) -> Clip:
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder / CONFIG}: missing; local-dir: takes a folder as open_clip writes it")
    name = f"local-dir:{folder}"
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_cfg"]
        model = open_clip.create_model(name, force_custom_text=True, require_pretrained=True)
        return Clip(model, config, open_clip.get_tokenizer(name))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: open_clip cannot load it: {first_line(error)}") from None


def _from_name(name: str, weights: str | None) -> Clip:
    hub = name.startswith("hf-hub:")
    name = name if hub else name.replace("/", "-")  # ViT-B/32 as papers write it
    config = None if hub else get_model_config(name)
    if not hub and config is None:
        raise RecipeError(f"teacher.model: open_clip knows no {name!r}{suggest(name, open_clip.list_models())}")
    known = open_clip.list_pretrained_tags_by_model(name)
    if weights and weights not in known and not os.path.isfile(weights):
        raise RecipeError(f"teacher.weights: {weights!r} is no file, and no tag of {name}; tags: {', '.join(known)}")
    look()
    quick = bool(weights and (get_pretrained_cfg(name, weights) or {}).get("quick_gelu"))
    try:
        model = open_clip.create_model(name, pretrained=weights, force_custom_text=True, force_quick_gelu=quick)
        tokenizer = open_clip.get_tokenizer(name)
    except (OSError, RuntimeError, ValueError) as error:
        if weights and os.path.isfile(weights):
            raise CheckpointError(f"{weights}: open_clip cannot load it into {name}: {first_line(error)}") from None
        what = f"teacher {name} ({weights})" if weights else f"teacher {name}"
        raise MissingWeights((what, "teacher.weights: FILE, or teacher.model: local-dir:DIR")) from None
    return Clip(model, {**(config or {"embed_dim": _width(model)}), "quick_gelu": quick}, tokenizer)


def _width(model: nn.Module) -> int:
    with torch.no_grad():
        return int(model.visual.output_dim)  # type: ignore[union-attr,arg-type]

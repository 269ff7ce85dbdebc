"""Export a model as a folder that open_clip loads by `local-dir:FOLDER`.

The folder uses only open_clip's own classes, so not every student fits; `open_clip_text.py` writes the student's text
tower. A linear clip projector is multiplied into the last map of the image tower and of the teacher's text tower.

Shapes: E CLIP width, D embedding.
"""

import os
import shutil
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import open_clip
import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.tokenizer import HFTokenizer
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from mclip_kit.errors import CheckpointError, first_line
from mclip_kit.files import follow_umask, write_json
from mclip_kit.interop.open_clip_text import SAMPLES, student_text
from mclip_kit.models.clip import CONFIG, TEXT, WEIGHTS
from mclip_kit.models.freezing import evaluating
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.safe_load import UNFIT, StateDict

TOLERANCE = 1e-5
CONTEXT = 77
LAST_MAPS = {
    "visual": ("proj", "attnpool.c_proj", "head.proj", "head.mlp.fc2"),  # ViT, ResNet, timm
    "text": ("text_projection", "proj.2", "proj"),  # CLIP, Hugging Face with two maps, with one map
}
"""Tower -> the names that its last linear map can have."""
COMMON = ("embed_dim", "vision_cfg", "quick_gelu", "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale")

Tower = Literal["student", "teacher"]


def export_open_clip(
    model: MultilingualClip, folder: str | Path, tower: Tower = "student", context: int = CONTEXT
) -> None:
    """Write an open_clip folder that gives the model's embeddings within 1e-5. On an error, nothing is written.

    open_clip cleans every text before tokenising it (ftfy: curly quotes become straight, HTML escapes become letters)
    and cuts it at `context` tokens; embeddings of texts that this changes differ a little. The config of a student's
    text tower is found by the folder's absolute path: after moving the folder, change `text_cfg.hf_model_name` in
    open_clip_config.json.

    Args:
        model: the model to export; on the CPU, float32.
        folder: the folder to write; it must not exist.
        tower: the text tower: the multilingual student, or the CLIP's own.
        context: tokens to which open_clip pads and cuts the student's texts, at most the encoder's positions.
    Raises:
        CheckpointError: open_clip's classes cannot represent the tower; the folder exists; or open_clip's embeddings
            differ from the model's.
    """
    folder = Path(folder)
    if folder.exists():
        raise CheckpointError(f"{folder}: exists already; remove it or choose another --out")
    state, config, encoder_config = {"student": _student, "teacher": _teacher}[tower](model, context)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, part / WEIGHTS, {"format": "pt"})
        follow_umask(part)
        tokenizer = model.clip[0].tokenizer
        if tower == "student":
            model.encoder.tokenizer.save(part)
        elif isinstance(tokenizer, HFTokenizer):
            tokenizer.save_pretrained(part)
        if encoder_config is not None:
            encoder_config.save_pretrained(part / TEXT)
        for home in (part, folder):  # the path of the text tower's config: once for the comparison, once to stay
            if encoder_config is not None:
                config["text_cfg"]["hf_model_name"] = str(home.resolve() / TEXT)
            write_json(part / CONFIG, {"model_cfg": config, "preprocess_cfg": model.clip[0].preprocess})
            if home is part:
                _compare(model, part, tower, context)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _teacher(model: MultilingualClip, _: int) -> tuple[StateDict, dict[str, Any], Any]:
    """The CLIP in the model's space: weights, open_clip's config, the config of its Hugging Face text tower if any."""
    state, config = _clip(model, ("visual", "text"))
    text = model.clip[0].model.text
    return state, config, deepcopy(text.config) if isinstance(text, HFTextEncoder) else None


def _student(model: MultilingualClip, context: int) -> tuple[StateDict, dict[str, Any], Any]:
    """Image tower and student: weights, open_clip's config, the config of the student's encoder."""
    state, config = _clip(model, ("visual",))
    text, options, encoder_config = student_text(model)
    config["vision_cfg"].pop("output_tokens", None)  # CoCa: only its decoder needs them
    config = {key: config[key] for key in COMMON if key in config} | {
        "custom_text": True,
        "text_cfg": {
            "hf_tokenizer_name": "beside this file",
            **options,
            "context_length": min(context, model.encoder.positions),
        },
    }
    kept = {name: tensor for name, tensor in state.items() if name.startswith(("visual.", "logit_"))}
    return kept | {f"text.{name}": tensor for name, tensor in text.items()}, config, encoder_config


def _clip(model: MultilingualClip, towers: Sequence[str]) -> tuple[StateDict, dict[str, Any]]:
    """The CLIP's weights and config; a linear clip projector is multiplied into the last maps of the towers."""
    clip = model.clip[0]
    state = {name: tensor.detach().cpu() for name, tensor in clip.model.state_dict().items()}
    state["logit_scale"] = model.teacher_scale.detach().cpu()
    if isinstance(model.clip_projector, nn.Linear):
        fold_DE = model.clip_projector.weight.detach().cpu().double()
        for tower in towers:
            _fold(state, tower, fold_DE)
    return state, {**deepcopy(clip.config), "embed_dim": model.width, "custom_text": True}


def _fold(state: StateDict, tower: str, fold_DE: Tensor) -> None:
    for name in (f"{tower}.{last}" for last in LAST_MAPS[tower]):
        if name in state:  # a bare matrix (width, E)
            state[name] = (state[name].double() @ fold_DE.T).float()
            return
        if f"{name}.weight" in state:
            for part in (f"{name}.weight", f"{name}.bias"):
                if part in state:
                    state[part] = (fold_DE @ state[part].double()).float()
            return
    raise CheckpointError(
        f"the clip projector cannot be merged: the CLIP's {tower} tower ends in no linear map that is known"
    )


def _compare(model: MultilingualClip, folder: Path, tower: Tower, context: int) -> None:
    """Load the folder with open_clip alone, and compare its embeddings with the model's."""
    name = f"local-dir:{folder}"
    draw = np.random.default_rng(0)
    pictures = [Image.fromarray(draw.integers(0, 256, (*size, 3), np.uint8)) for size in ((67, 91), (90, 50))]
    try:
        loaded, _, transform = open_clip.create_model_and_transforms(name)
        tokenizer = open_clip.get_tokenizer(name)
        texts, encode = list(SAMPLES), model.encode_teacher_text
        if tower == "student":
            tokens, encode = model.student_tokens(SAMPLES), model.encode_text
            texts = [text for text, ids in zip(SAMPLES, tokens, strict=True) if len(ids) <= context]
        with evaluating(loaded):
            found = {
                "text": (loaded.encode_text(tokenizer(texts), normalize=True), encode(texts)),
                "image": (
                    loaded.encode_image(torch.stack([transform(picture) for picture in pictures]), normalize=True),
                    model.encode_image(pictures),
                ),
            }
            differences = {what: float((theirs - ours).abs().max()) for what, (theirs, ours) in found.items()}
    except UNFIT as error:
        raise CheckpointError(f"open_clip cannot load what was exported: {first_line(error)}") from None
    for what, difference in differences.items():
        if not difference <= TOLERANCE:
            raise CheckpointError(
                f"nothing exported: open_clip's {what} embeddings differ from the model's by {difference:.1e}"
            )

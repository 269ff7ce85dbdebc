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

from mclip_kit.config.model import AS_OPEN_CLIP
from mclip_kit.errors import CheckpointError, first_line
from mclip_kit.files import follow_umask, write_json, write_text
from mclip_kit.interop.open_clip_text import DIRTY, SAMPLES, SPECIAL, student_text
from mclip_kit.models.clip import CONFIG, TEXT, WEIGHTS
from mclip_kit.models.freezing import evaluating
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.safe_load import UNFIT, StateDict
from mclip_kit.models.special_tokens import save_as_text

TOLERANCE = 1e-5
CONTEXT = 77
LAST_MAPS = {
    "visual": ("proj", "attnpool.c_proj", "head.proj", "head.mlp.fc2"),  # ViT, ResNet, timm
    "text": ("text_projection", "proj.2", "proj"),  # CLIP, Hugging Face with two maps, with one map
}
"""Tower -> the names that its last linear map can have."""
COMMON = ("embed_dim", "vision_cfg", "quick_gelu", "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale")

PICTURES = {
    "exif": "open_clip does not turn them by EXIF's orientation, the model does",
    "alpha": "of transparent pixels open_clip sees the hidden colours, the model sees white",
    "depth": "open_clip makes values of 16-bit grey above 255 white, the model scales them",
}
"""Key of `Pictures` -> what open_clip's `convert("RGB")` does otherwise."""
MOVED = (
    """python -c "import json, pathlib; file = pathlib.Path('open_clip_config.json'); config = json.loads("""
    """file.read_text()); config['model_cfg']['text_cfg']['hf_model_name'] = str(pathlib.Path('text').resolve()); """
    """file.write_text(json.dumps(config, indent=2))\""""
)
"""A command without this package that gives a moved folder its new path."""

Tower = Literal["student", "teacher"]


def export_open_clip(
    model: MultilingualClip, folder: str | Path, tower: Tower = "student", context: int = CONTEXT
) -> None:
    """Write an open_clip folder that gives the model's embeddings within 1e-5. On an error, nothing is written.

    What differs is in the folder's README.md, see `notes`. The config of a student's text tower is found by the
    folder's absolute path; after the folder was moved, the command there writes its new path.

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
            save_as_text(part)
        elif isinstance(tokenizer, HFTokenizer):
            tokenizer.save_pretrained(part)
        if encoder_config is not None:
            encoder_config.save_pretrained(part / TEXT)
        for home in (part, folder):  # the path of the text tower's config: once for the comparison, once to stay
            if encoder_config is not None:
                config["text_cfg"]["hf_model_name"] = str(home.resolve() / TEXT)
            facts = {"text_cleaning": model.text_cleaning, "pictures": model.clip[0].pictures.model_dump()}
            content = {"model_cfg": config, "preprocess_cfg": model.clip[0].preprocess}
            write_json(part / CONFIG, {**content, "mclip_kit": facts})  # open_clip reads the first two
            if home is part:
                _compare(model, part, tower, context)
        write_text(part / "README.md", _readme(notes(model, tower, context), encoder_config is not None))
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def notes(model: MultilingualClip, tower: Tower, context: int) -> list[str]:
    """What open_clip does otherwise than the model with the exported folder; a sentence each."""
    found, how = [], model.clip[0].pictures
    differ = [text for key, text in PICTURES.items() if getattr(how, key) != getattr(AS_OPEN_CLIP, key)]
    if differ:
        found.append(f"Pictures: {'; '.join(differ)}. Other pictures give the model's embeddings.")
    if tower == "student":
        if model.text_cleaning == "none":
            found.append(
                "Texts: open_clip repairs mojibake, curly quotes, HTML escapes and white space in every text; this "
                "model does not (text_cleaning: none). Other texts give the model's embeddings."
            )
        if context < model.encoder.positions:
            found.append(f"Texts: open_clip cuts them at {context} tokens, the model at {model.encoder.positions}.")
    return found


def _readme(differences: list[str], has_path: bool) -> str:
    lines = ["A CLIP in open_clip's format, written by mclip-kit. Load it as `local-dir:THIS_FOLDER`.", ""]
    lines += [f"- {line}" for line in differences or ["open_clip gives the model's embeddings for all inputs."]]
    if has_path:
        lines += ["", "open_clip_config.json has the full path of `text/`. After moving the folder, run in it:", ""]
        lines += ["```", MOVED, "```"]
    return "\n".join([*lines, ""])


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
    name, cleans = f"local-dir:{folder}", model.text_cleaning != "none"
    samples = [*SAMPLES, *(DIRTY if cleans else SPECIAL)]
    draw = np.random.default_rng(0)
    pictures = [Image.fromarray(draw.integers(0, 256, (*size, 3), np.uint8)) for size in ((67, 91), (90, 50))]
    try:
        loaded, _, transform = open_clip.create_model_and_transforms(name)
        tokenizer = open_clip.get_tokenizer(name)
        texts, encode = list(SAMPLES), model.encode_teacher_text
        if tower == "student":
            tokens, encode = model.student_tokens(samples), model.encode_text
            texts = [text for text, ids in zip(samples, tokens, strict=True) if len(ids) <= context]
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

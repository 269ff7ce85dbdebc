"""Export a model as a folder that open_clip loads by `local-dir:FOLDER`.

The folder uses only open_clip's own classes, so not every student fits; `open_clip_text.py` writes the student's text
tower. A linear clip projector is multiplied into the last map of the image tower and of the teacher's text tower.

A Hugging Face text tower has a config of its own. open_clip 3.3 passes its name, `hf_model_name`, to transformers'
`AutoConfig.from_pretrained`, which takes a hub id or a path from the current folder, and nothing looks into the folder
of open_clip's config (its own text tower, whose sizes are in that config, is pre-norm; XLM-R is post-norm). So the name
is `text`, which is found from inside the folder, wherever it is; or, with the option `repo`, that hub id.

Shapes: E CLIP width, D embedding.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from open_clip.hf_model import HFTextEncoder
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import save_file
from torch import Tensor, nn

from mclip_kit.config.model import AS_OPEN_CLIP
from mclip_kit.errors import CheckpointError
from mclip_kit.files import follow_umask, write_json
from mclip_kit.interop.export import Format
from mclip_kit.interop.open_clip_text import student_text
from mclip_kit.interop.push import is_repo
from mclip_kit.layout import CLIP_CONFIG, CLIP_WEIGHTS
from mclip_kit.models.clip import TEXT
from mclip_kit.models.freezing import evaluating
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.safe_load import StateDict
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
MODES = 'Pictures: give them in RGB, by Image.open(FILE).convert("RGB"); open_clip resizes before it converts.'
TEXT_LINE = (
    'text = json.load(open("{folder}/open_clip_config.json"))["model_cfg"]["text_cfg"]\n'
    'text["hf_model_name"] = "{folder}/text"'
)
BY_FOLDER = (
    "Loading: open_clip takes the config of the text tower, `text`, from the current folder. The lines of Python load "
    "this folder from anywhere. A program that takes only a model's name works inside the folder, with the name "
    "`local-dir:.`, such as `clip_benchmark eval --model local-dir:. --no_amp`. With --repo ORG/NAME it is loaded from "
    "the hub."
)
BY_HUB = (
    "Loading: push this folder to {repo} on the hub; then hf-hub:{repo} is its name in every program that uses "
    "open_clip. Before that, open_clip cannot load it without the override of text_cfg by the folder's `text`."
)


def write(model: MultilingualClip, folder: Path, options: Mapping[str, Any]) -> None:
    """Write an open_clip folder: weights, config, tokenizer.

    Args:
        model: on the CPU, float32.
        folder: exists and is empty.
        options: `tower`: the text tower, `student` or `teacher`; `context`: tokens to which open_clip pads and cuts
            the student's texts, at most the encoder's positions; `repo`: ORG/NAME, the hub's repository that the folder
            will be pushed to, or None.
    Raises:
        CheckpointError: open_clip's classes cannot represent the tower.
    """
    tower = options["tower"]
    state, config, encoder_config = {"student": _student, "teacher": _teacher}[tower](model, options["context"])
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / CLIP_WEIGHTS, {"format": "pt"})
    follow_umask(folder)
    tokenizer = model.clip[0].tokenizer
    if tower == "student":
        model.encoder.tokenizer.save(folder)
        save_as_text(folder)
    elif isinstance(tokenizer, HFTokenizer):
        tokenizer.save_pretrained(folder)
    if options["repo"] and config["text_cfg"].get("hf_tokenizer_name"):  # of a local folder open_clip takes its own
        config["text_cfg"]["hf_tokenizer_name"] = options["repo"]
    if encoder_config is not None:
        encoder_config.save_pretrained(folder / TEXT)
        config["text_cfg"] |= {"hf_model_name": options["repo"] or TEXT, "hf_model_pretrained": False}
        if options["repo"]:  # transformers looks for it there
            encoder_config.save_pretrained(folder)
    facts = {"text_cleaning": model.text_cleaning, "pictures": model.clip[0].pictures.model_dump()}
    content = {"model_cfg": config, "preprocess_cfg": model.clip[0].preprocess}
    write_json(folder / CLIP_CONFIG, {**content, "mclip_kit": facts})  # open_clip reads the first two


def notes(model: MultilingualClip, options: Mapping[str, Any]) -> list[str]:
    """What open_clip does otherwise than the model with the exported folder; a sentence each."""
    found, how = [MODES], model.clip[0].pictures
    differ = [text for key, text in PICTURES.items() if getattr(how, key) != getattr(AS_OPEN_CLIP, key)]
    if differ:
        found.append(f"Pictures: {'; '.join(differ)}. Other pictures give the model's embeddings.")
    if options["tower"] == "student":
        if model.text_cleaning == "none":
            found.append(
                "Texts: open_clip repairs mojibake, curly quotes, HTML escapes and white space in every text; this "
                "model does not (text_cleaning: none). Other texts give the model's embeddings."
            )
        if options["context"] < model.encoder.positions:
            found.append(
                f"Texts: open_clip cuts them at {options['context']} tokens, the model at {model.encoder.positions}; "
                "the differences are those from the model's embeddings of texts that are cut alike."
            )
    if _has_hf_text(model, options):
        found.append(BY_HUB.format(repo=options["repo"]) if options["repo"] else BY_FOLDER)
    return found


def _has_hf_text(model: MultilingualClip, options: Mapping[str, Any]) -> bool:
    """Whether the exported text tower is a Hugging Face one."""
    return options["tower"] == "student" or isinstance(model.clip[0].model.text, HFTextEncoder)


def _use(model: MultilingualClip, options: Mapping[str, Any]) -> str:
    """Lines that load the folder, and embed a text and a picture."""
    name = f'"hf-hub:{options["repo"]}"' if options["repo"] else '"local-dir:{folder}"'
    lines, override = ["import open_clip", "from PIL import Image", ""], ""
    if _has_hf_text(model, options) and not options["repo"]:
        lines, override = ["import json", *lines, TEXT_LINE], ", text_cfg=text"
    return "\n".join(
        [
            *lines,
            f"model, _, transform = open_clip.create_model_and_transforms({name}{override})",
            f"tokenizer = open_clip.get_tokenizer({name})",
            'text_ND = model.eval().encode_text(tokenizer(["ein Hund"]), normalize=True)',
            'image_ND = model.encode_image(transform(Image.open("photo.jpg").convert("RGB"))[None], normalize=True)',
        ]
    )


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


def _misfit(model: MultilingualClip, options: Mapping[str, Any]) -> str | None:
    if options["repo"] and not is_repo(options["repo"]):
        return f"--repo {options['repo']}: give ORG/NAME, a repository of the Hugging Face hub"
    try:
        {"student": _student, "teacher": _teacher}[options["tower"]](model, options["context"])
    except CheckpointError as error:
        return str(error)
    return None


def _allowed(model: MultilingualClip, options: Mapping[str, Any]) -> dict[str, float]:
    same = ["texts", "long texts", "pictures", "palette and CMYK", "photos"]
    if options["tower"] == "teacher" or model.text_cleaning != "none":
        same.append("dirty texts")
    if model.clip[0].pictures == AS_OPEN_CLIP:
        same.append("odd pictures")
    return dict.fromkeys(same, TOLERANCE)


def _encode_text(model: MultilingualClip, options: Mapping[str, Any]) -> Callable[[list[str]], Any]:
    """The model's embeddings of texts, the student's cut as open_clip cuts them."""
    if options["tower"] == "teacher":
        return model.encode_teacher_text

    def encode(texts: list[str]) -> Tensor:
        with evaluating(model):
            ids_BT, mask_BT = model.encoder.pad(model.student_tokens(texts, options["context"]))
            return F.normalize(model.projector(model.encoder(ids_BT, mask_BT), mask_BT), dim=-1)

    return encode


FORMAT = Format(
    library="open_clip",
    hub=("open_clip", "zero-shot-image-classification"),
    packages=("open_clip",),
    install="'open_clip_torch>=3.3' transformers",
    misfit=_misfit,
    write=write,
    allowed=_allowed,
    notes=notes,
    encode_text=_encode_text,
    options={"tower": "student", "context": CONTEXT, "repo": None},
    use=_use,
)

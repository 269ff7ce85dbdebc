"""Import AltCLIP (arXiv 2211.06679): a checkpoint of transformers' AltCLIPModel becomes a model.

The checkpoint has an image tower and a multilingual text tower. It has no text tower of CLIP, which models here have as
their teacher; without one given, the checkpoint's own text tower is the teacher, as a tower of open_clip.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from open_clip import CustomTextCLIP
from open_clip.model import set_model_preprocess_cfg
from open_clip.tokenizer import SimpleTokenizer
from transformers import AltCLIPConfig, AltCLIPModel, AutoImageProcessor, XLMRobertaConfig, XLMRobertaModel

from mclip_kit.errors import CheckpointError, first_line
from mclip_kit.interop import open_clip
from mclip_kit.interop.clip_vision import open_clip_vision, preprocess
from mclip_kit.interop.transformers import SIZES
from mclip_kit.models.clip import Clip, build_clip
from mclip_kit.models.hub import MissingWeights, hub_answers, quiet_transformers
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.safe_load import UNFIT, plain_values, refusal
from mclip_kit.models.text_encoder import Encoder, tokenizer_of

PLACEHOLDER = {"context_length": 4, "vocab_size": 49408, "width": 2, "heads": 1, "layers": 1}
"""A text tower that is replaced before anyone sees it."""


def import_altclip(place: str | Path, clip: str | None = None) -> MultilingualClip:
    """Turn an AltCLIPModel into a model with head altclip and pool cls.

    >>> from mclip_kit.interop.imports.altclip import import_altclip
    >>> model = import_altclip("models/altclip")
    >>> model.save("models/imported")

    Args:
        place: a folder that `AltCLIPModel.save_pretrained` wrote, with its tokenizer and image processor, or an id on
            the hub, such as BAAI/AltCLIP-m9.
        clip: the CLIP whose text tower is to be the teacher, as `build_clip` takes it, such as `local-dir:DIR`; its
            image tower is not used. None: the checkpoint's own text tower.
    Raises:
        MissingWeights: the checkpoint is neither on disk nor on the hub.
        CheckpointError: it is not an AltCLIPModel, is damaged, or has sizes or pictures that open_clip cannot have.
    """
    name, local = str(place), Path(place).is_dir()
    offline = local or not hub_answers()
    try:
        with plain_values(), quiet_transformers():
            found, processor = _read(name, offline)
            encoder = _encoder(found, name, offline)
    except UNFIT as error:
        if isinstance(error, OSError) and not local:
            raise MissingWeights((f"AltCLIP {name}", "a folder that has it")) from None
        why = refusal(error) or f"not an AltCLIPModel that transformers can load: {first_line(error)}"
        raise CheckpointError(f"{name}: {why}") from None
    try:
        model = _model(found, processor, encoder)
        model.made_from = name
        teacher = build_clip(clip) if clip else _as_teacher(model)
        return _with_teacher(model, teacher)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from None


def _read(name: str, offline: bool) -> tuple[Any, Any]:
    """The AltCLIPModel, in float32, and its image processor."""
    source: dict[str, Any] = {"local_files_only": offline}
    kind = AltCLIPConfig.get_config_dict(name, **source)[0].get("model_type")
    if kind != "altclip":
        raise ValueError(f"its model_type is {kind}, not altclip")
    found, report = AltCLIPModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True, **source)
    if report["missing_keys"]:  # transformers would fill them with random weights
        raise ValueError(f"its weights lack {min(report['missing_keys'])}")
    return found.eval(), AutoImageProcessor.from_pretrained(name, backend="pil", **source)


def _encoder(found: Any, name: str, offline: bool) -> Encoder:
    sizes = found.config.text_config
    config = XLMRobertaConfig(**{key: getattr(sizes, key) for key in SIZES})
    model = XLMRobertaModel(config, add_pooling_layer=False)
    state = found.text_model.roberta.state_dict()
    model.load_state_dict({key.replace("encoder.layers.", "encoder.layer."): tensor for key, tensor in state.items()})
    return Encoder(model.eval(), tokenizer_of(name, config, offline))


def _model(found: Any, processor: Any, encoder: Encoder) -> MultilingualClip:
    """The model with a placeholder for the teacher's text tower."""
    text, vision, width = found.config.text_config, found.config.vision_config, found.config.projection_dim
    layout, state = open_clip_vision(vision, found.vision_model.state_dict(), found.visual_projection.weight)
    config = {"embed_dim": width, "vision_cfg": layout, "text_cfg": PLACEHOLDER}
    if vision.hidden_act == "quick_gelu":
        config["quick_gelu"] = True
    towers: Any = CustomTextCLIP(**config)
    set_model_preprocess_cfg(towers, preprocess(processor, vision.image_size))
    try:
        towers.visual.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"open_clip's vision transformer does not take its image tower: {first_line(error)}"
        ) from None
    towers.logit_scale.data.copy_(found.logit_scale.detach())
    projector = {"kind": "altclip", "pool": "cls", "hidden": text.project_dim}
    model = MultilingualClip(Clip(towers.eval(), config, SimpleTokenizer(context_length=4)), encoder, projector)
    norm, linear, last = _head(model)
    if norm.eps != text.layer_norm_eps:
        raise CheckpointError(f"its layer_norm_eps is {text.layer_norm_eps}; the head altclip has {norm.eps}")
    norm.load_state_dict(found.text_model.pre_LN.state_dict())
    linear.load_state_dict(found.text_model.transformation.state_dict())
    last.load_state_dict(found.text_projection.state_dict())
    return model.eval()


def _head(model: MultilingualClip) -> Any:
    return model.projector.head


def _as_teacher(model: MultilingualClip) -> Clip:
    """A CLIP of the model's image tower and its student, as open_clip's own classes have them."""
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        open_clip.write(model, Path(folder), {**open_clip.FORMAT.options, "context": model.encoder.positions})
        return build_clip(f"local-dir:{folder}")


def _with_teacher(model: MultilingualClip, teacher: Clip) -> MultilingualClip:
    """The model with another CLIP's text tower; image tower, scale and picture preparation stay."""
    own = model.clip[0]
    if teacher.width != own.width:
        raise CheckpointError(f"the given CLIP has embeddings of width {teacher.width}, AltCLIP of {own.width}")
    towers: Any = own.model
    towers.text = teacher.model.text
    config = {**own.config, "text_cfg": teacher.config["text_cfg"]}
    projector: Any = model.settings["projector"]
    whole = MultilingualClip(Clip(towers, config, teacher.tokenizer), model.encoder, projector)
    whole.projector, whole.made_from = model.projector, model.made_from
    return whole.eval()

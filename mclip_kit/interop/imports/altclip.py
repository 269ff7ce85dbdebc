"""Import AltCLIP (arXiv 2211.06679): a checkpoint of transformers' AltCLIPModel becomes a model.

The checkpoint has an image tower and a multilingual text tower. It has no text tower of CLIP, which models here have as
their teacher; without one given, the checkpoint's own text tower is the teacher, as a tower of open_clip.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AltCLIPConfig, AltCLIPModel, AutoImageProcessor, XLMRobertaConfig, XLMRobertaModel

from mclip_kit.errors import CheckpointError, first_line
from mclip_kit.interop.altclip_text import EPSILON, SIZES
from mclip_kit.interop.imports.folders import folder_of, languages
from mclip_kit.interop.imports.source import Head, assemble, given_clip, transformers_clip, with_teacher
from mclip_kit.models.hub import quiet_transformers
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.safe_load import UNFIT, plain_values, refusal
from mclip_kit.models.text_encoder import Encoder, tokenizer_of


def import_altclip(place: str | Path, clip: str | None = None, clip_weights: str | None = None) -> MultilingualClip:
    """Turn an AltCLIPModel into a model with head altclip and pool cls.

    >>> from mclip_kit.interop.imports.altclip import import_altclip
    >>> model = import_altclip("models/altclip")
    >>> model.save("models/imported")

    Args:
        place: a folder that `AltCLIPModel.save_pretrained` wrote, with its tokenizer and image processor, or an id on
            the hub, such as BAAI/AltCLIP-m9.
        clip: the CLIP whose text tower is to be the teacher, as `teacher.model` of a recipe; its image tower is not
            used. None: the checkpoint's own text tower.
        clip_weights: its weights, as `teacher.weights`.
    Raises:
        MissingWeights: the checkpoint is neither on disk nor on the hub.
        CheckpointError: it is not an AltCLIPModel, is damaged, or has sizes or pictures that open_clip cannot have.
    """
    name = str(place)
    folder = folder_of(place, "AltCLIP")
    try:
        with plain_values(), quiet_transformers():
            found, processor = _read(str(folder))
            encoder = _encoder(found, str(folder))
    except UNFIT as error:
        why = refusal(error) or f"not an AltCLIPModel that transformers can load: {first_line(error)}"
        raise CheckpointError(f"{name}: {why}") from None
    teacher = given_clip(clip, clip_weights, name) if clip else None
    try:
        model = _model(found, processor, encoder, name)
        model.trained_languages = languages(folder)
        return with_teacher(model, teacher)
    except CheckpointError as error:
        raise CheckpointError(str(error) if name in str(error) else f"{name}: {error}") from None


def _read(folder: str) -> tuple[Any, Any]:
    """The AltCLIPModel, in float32, and its image processor."""
    kind = AltCLIPConfig.get_config_dict(folder, local_files_only=True)[0].get("model_type")
    if kind != "altclip":
        raise ValueError(f"its model_type is {kind}, not altclip")
    found, report = AltCLIPModel.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
    if report["missing_keys"]:  # transformers would fill them with random weights
        raise ValueError(f"its weights lack {min(report['missing_keys'])}")
    return found.eval(), AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)


def _encoder(found: Any, folder: str) -> Encoder:
    sizes = found.config.text_config
    config = XLMRobertaConfig(**{key: getattr(sizes, key) for key in SIZES})
    model = XLMRobertaModel(config, add_pooling_layer=False)
    state = found.text_model.roberta.state_dict()
    model.load_state_dict({key.replace("encoder.layers.", "encoder.layer."): tensor for key, tensor in state.items()})
    return Encoder(model.eval(), tokenizer_of(folder, config, True))


def _model(found: Any, processor: Any, encoder: Encoder, name: str) -> MultilingualClip:
    """The model with a placeholder for the teacher's text tower."""
    text, towers = found.config.text_config, found.vision_model.state_dict()
    if text.layer_norm_eps != EPSILON:
        raise CheckpointError(f"its layer_norm_eps is {text.layer_norm_eps}; the head altclip has {EPSILON}")
    clip = transformers_clip(found.config.vision_config, towers, found.visual_projection.weight, processor)
    clip.model.get_parameter("logit_scale").data.copy_(found.logit_scale.detach())
    parts = (found.text_model.pre_LN, found.text_model.transformation, found.text_projection)
    state = {f"{n}.{key}": tensor for n, part in enumerate(parts) for key, tensor in part.state_dict().items()}
    projector = {"kind": "altclip", "pool": "cls", "hidden": text.project_dim}
    return assemble(clip, encoder, Head(projector, state), name)

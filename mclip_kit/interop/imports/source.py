"""What the imports share: the given CLIP, the text's length, a head of linear maps, the model of all of them.

Shapes: H encoder width, D embedding, E CLIP width, F width between two maps.
"""

from collections.abc import Mapping
from copy import deepcopy
from inspect import signature
from typing import Any, NamedTuple

import torch
from open_clip import CustomTextCLIP
from open_clip.model import set_model_preprocess_cfg
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor
from transformers import MODEL_MAPPING, AutoModel

from mclip_kit.errors import CheckpointError, RecipeError, first_line
from mclip_kit.files import temporary_folder
from mclip_kit.interop import open_clip
from mclip_kit.interop.clip_pictures import AS_TRANSFORMERS
from mclip_kit.interop.clip_vision import open_clip_vision, preprocess
from mclip_kit.interop.origin import mark
from mclip_kit.models.clip import Clip, build_clip
from mclip_kit.models.hub import quiet_transformers
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.text_encoder import Encoder

BRING_WEIGHTS = ("local-dir:", "hf-hub:", "openai:")
PLACEHOLDER = {"context_length": 4, "vocab_size": 49408, "width": 2, "heads": 1, "layers": 1}
"""A text tower that is replaced before anyone sees it."""


class Head(NamedTuple):
    """A projector: its arguments as in a recipe, and its head's weights."""

    projector: dict[str, Any]
    state: dict[str, Tensor]


def given_clip(clip: str | None, weights: str | None, needed_by: str) -> Clip:
    """The CLIP that a user names by `--clip`.

    Args:
        clip: as `teacher.model` of a recipe.
        weights: as `teacher.weights`, for a name of open_clip.
        needed_by: the source, for messages.
    Raises:
        RecipeError: it is not given, or has no weights.
    """
    if not clip:
        raise RecipeError(
            f"{needed_by} has no image tower; name the CLIP that it was trained for: --clip local-dir:DIR, hf-hub:ID, "
            "openai:FILE, or a name of open_clip with --clip-weights TAG"
        )
    return trained_clip(clip, weights, f"--clip {clip}", "--clip-weights")


def trained_clip(name: str, weights: str | None, what: str, option: str) -> Clip:
    """A CLIP with trained weights.

    Args:
        name: as `teacher.model` of a recipe.
        weights: as `teacher.weights`; for a name of open_clip only, which needs them.
        what: the name, and
        option: the option of the weights, for messages.
    Raises:
        RecipeError: the weights are missing, or the name brings its own.
    """
    brings = name.startswith(BRING_WEIGHTS)
    if brings and weights:
        raise RecipeError(f"leave {option} out: local-dir:, hf-hub: and openai: models bring their own weights")
    if not brings and weights in (None, "random", "train"):
        raise RecipeError(f"{what}: give its trained weights, a pretrained tag or a file: {option} TAG")
    clip = build_clip(name, weights)
    mark(clip, f"{name} {weights or ''}".strip())
    return clip


def same_width(width: int, clip: Clip, source: str) -> None:
    """CheckpointError if a source's embeddings do not have a CLIP's width."""
    if clip.width != width:
        raise CheckpointError(
            f"{source}: its embeddings have width {width}, the given CLIP's {clip.width}; name the CLIP that it was "
            "trained for"
        )


def new_encoder(config: Any) -> Any:
    """A transformers encoder of random weights, in float32, without a pooler."""
    pooler = "add_pooling_layer" in signature(MODEL_MAPPING[type(config)].__init__).parameters
    options: dict[str, Any] = {"add_pooling_layer": False} if pooler else {}
    return AutoModel.from_config(config, dtype=torch.float32, **options).eval()


def without_pooler(model: Any, positions: int | None = None) -> Any:
    """A copy of a transformers encoder without its pooler.

    Args:
        model: BERT, DistilBERT, RoBERTa, XLM-R or another with a position table.
        positions: most tokens of a text: the rows after it are cut off the position table; None keeps all.
    """
    config, state = deepcopy(model.config), dict(model.state_dict())
    table = "embeddings.position_embeddings.weight"
    if positions is not None:
        padding = getattr(model.embeddings.position_embeddings, "padding_idx", None)
        config.max_position_embeddings = positions + (0 if padding is None else padding + 1)
        state[table] = state[table][: config.max_position_embeddings]
    copy = new_encoder(config)
    kept = {name: tensor.float() for name, tensor in state.items() if name in copy.state_dict()}
    copy.load_state_dict(kept)
    return copy


def limited(encoder: Encoder, tokens: int | None, source: str) -> Encoder:
    """The encoder, whose texts lose their pieces after `tokens` tokens, as the source's do.

    Raises:
        CheckpointError: the encoder has no position table and no tokenizer that could hold the limit.
    """
    if tokens is None or tokens >= encoder.positions:
        return encoder
    if getattr(getattr(encoder.model, "embeddings", None), "position_embeddings", None) is not None:
        return Encoder(without_pooler(encoder.model, tokens), encoder.tokenizer)
    own = getattr(encoder.tokenizer, "hf", None)
    if own is None:
        raise CheckpointError(
            f"{source}: it cuts texts at {tokens} tokens, which cannot be kept for a {encoder.config.model_type}"
        )
    own.model_max_length = encoder.tokenizer.longest = tokens
    return encoder


def linear_head(pool: str, weight_DH: Tensor, bias_D: Tensor | None) -> Head:
    """One linear map after the pool."""
    bias_D = torch.zeros(len(weight_DH)) if bias_D is None else bias_D
    return Head({"kind": "linear", "pool": pool}, {"0.weight": weight_DH, "0.bias": bias_D})


def mlp_head(pool: str, first: tuple[Tensor, Tensor | None], last: tuple[Tensor, Tensor | None]) -> Head:
    """Two linear maps, (weight, bias), with a GELU between."""
    state = {}
    for place, (weight, bias) in (("0", first), ("3", last)):
        state[f"{place}.weight"] = weight
        state[f"{place}.bias"] = torch.zeros(len(weight)) if bias is None else bias
    return Head({"kind": "mlp", "pool": pool, "hidden": len(first[0])}, state)


def assemble(clip: Clip, encoder: Encoder, head: Head, source: str) -> MultilingualClip:
    """The model of a CLIP and a student.

    Raises:
        CheckpointError: the head's weights fit neither the encoder nor the CLIP.
    """
    maps = [tensor for tensor in head.state.values() if tensor.dim() == 2]
    same_width(len(maps[-1]), clip, source)
    model = MultilingualClip(clip, encoder, head.projector)
    try:
        model.projector.head.load_state_dict(head.state)
    except RuntimeError as error:
        raise CheckpointError(f"{source}: its weights do not fit together: {first_line(error)}") from None
    model.made_from = source
    return model.eval()


def transformers_clip(vision: Any, state: Mapping[str, Tensor], projection_EV: Tensor, processor: Any) -> Clip:
    """A CLIP of an image tower of transformers, with a placeholder for the text tower.

    Args:
        vision: CLIPVisionConfig or AltCLIPVisionConfig.
        state: the tower's weights.
        projection_EV: the visual projection's weight.
        processor: its CLIPImageProcessor.
    Raises:
        CheckpointError: open_clip has no such image tower, or cannot prepare its pictures.
    """
    layout, weights = open_clip_vision(vision, state, projection_EV)
    config = {"embed_dim": len(projection_EV), "vision_cfg": layout, "text_cfg": PLACEHOLDER}
    if vision.hidden_act == "quick_gelu":
        config["quick_gelu"] = True
    towers: Any = CustomTextCLIP(**config)
    set_model_preprocess_cfg(towers, preprocess(processor, vision.image_size))
    try:
        towers.visual.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"open_clip's vision transformer does not take its image tower: {first_line(error)}"
        ) from None
    clip = Clip(towers.eval(), config, SimpleTokenizer(context_length=4))
    clip.pictures = AS_TRANSFORMERS
    return clip


def with_teacher(model: MultilingualClip, given: Clip | None) -> MultilingualClip:
    """The model with a text tower of its own in place of a placeholder; image tower, scale and pictures stay.

    Args:
        given: a CLIP whose text tower is the teacher; None: the student is, as a tower of open_clip.
    Raises:
        CheckpointError: the widths differ, or open_clip's text tower cannot represent the student.
    """
    teacher = given or _as_teacher(model)
    same_width(model.width, teacher, model.made_from)
    own = model.clip[0]
    towers: Any = own.model
    towers.text = teacher.model.text
    config = {**own.config, "text_cfg": teacher.config["text_cfg"]}
    clip = Clip(towers, config, teacher.tokenizer)
    clip.pictures = own.pictures
    projector: Any = model.settings["projector"]
    whole = MultilingualClip(clip, model.encoder, projector, text_cleaning=model.text_cleaning)
    whole.projector, whole.made_from, whole.trained_languages = (
        model.projector,
        model.made_from,
        model.trained_languages,
    )
    return whole.eval()


def _as_teacher(model: MultilingualClip) -> Clip:
    """A CLIP of the model's image tower and its student, as open_clip's own classes have them."""
    options = {**open_clip.FORMAT.options, "context": model.encoder.positions}
    reason = open_clip.FORMAT.misfit(model, options)
    if reason:
        raise CheckpointError(
            "its text tower cannot be the teacher too, as open_clip has none like it; name a CLIP whose text tower is "
            "the teacher: --clip local-dir:DIR"
        )
    with temporary_folder() as folder, quiet_transformers():
        open_clip.write(model, folder, options)
        return build_clip(f"local-dir:{folder}")

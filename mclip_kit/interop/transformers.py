"""Export a model as a folder of transformers' own classes: AltCLIPModel, or VisionTextDualEncoderModel.

AltCLIPModel is a student with head altclip and pool cls. VisionTextDualEncoderModel has a tanh pooler between the first
token and a bias-free projection; a linear head goes through it: its input is scaled down so far that tanh is the
identity in float32, and the projection scales it up again. The layers of an X-projector are appended to the encoder's.

Shapes: H encoder width, D embedding.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_MAPPING,
    AltCLIPConfig,
    AltCLIPModel,
    CLIPVisionConfig,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from mclip_kit.errors import CheckpointError
from mclip_kit.files import follow_umask, write_json
from mclip_kit.interop import altclip_text, clip_pictures
from mclip_kit.interop.altclip_text import kind_of, load, load_text, settle_tokenizer, sizes
from mclip_kit.interop.clip_vision import processor_config, vision_config, vision_state
from mclip_kit.interop.export import Format
from mclip_kit.interop.open_clip_text import ENCODERS, SAMPLES, EncoderLayers, affine
from mclip_kit.models.freezing import evaluating
from mclip_kit.models.hub import quiet_transformers
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.projectors import NoisyStandardization

TOLERANCE = 1e-5
LINEAR = 2.0**-10
"""Largest input of tanh for usual texts: tanh differs from it by a third of its square, 3e-7 of it."""


def write(model: MultilingualClip, folder: Path, options: Mapping[str, Any]) -> None:
    """Write a transformers folder: weights, config, tokenizer, image processor.

    Args:
        model: on the CPU, float32; `misfit` gives None for it.
        folder: exists and is empty.
        options: none are known.
    """
    with quiet_transformers():
        built = (_altclip if _is_altclip(model) else _dual)(model)
        built.save_pretrained(folder)
        follow_umask(folder)
        model.encoder.tokenizer.save(folder)
        settle_tokenizer(folder, model.encoder.positions)
    kind = "AltCLIPProcessor" if _is_altclip(model) else "VisionTextDualEncoderProcessor"
    write_json(folder / "preprocessor_config.json", {**processor_config(model.clip[0]), "processor_class": kind})


def misfit(model: MultilingualClip, options: Mapping[str, Any]) -> str | None:
    """Why no class of transformers fits, in one sentence; None: one fits."""
    pooling, encoder = model.projector.pooling, model.encoder.config
    kind = kind_of(model)
    if pooling != "cls":
        return (
            f"transformers' dual encoders pool the first token, not {pooling}; train with projector.pool: cls, or "
            "export to sentence-transformers"
        )
    if kind == "mlp":
        return (
            "AltCLIPModel has no GELU in its head, VisionTextDualEncoderModel neither; train with projector.kind: "
            "altclip or linear, or export to sentence-transformers"
        )
    if kind == "altclip":
        reason = altclip_text.misfit(model)
        if reason:
            return reason
    elif encoder.model_type not in ENCODERS:
        return (
            f"for head {kind} transformers takes {', '.join(ENCODERS)} encoders, not {encoder.model_type}; export to "
            "sentence-transformers"
        )
    if model.projector.blocks is not None and encoder.hidden_act != "gelu":
        return (
            f"the X-projector's layers have gelu, the encoder's {encoder.hidden_act}; train with projector.kind: linear"
        )
    try:
        vision_config(model.image)
        processor_config(model.clip[0])
    except CheckpointError as error:
        return str(error)
    return None


def notes(model: MultilingualClip, options: Mapping[str, Any]) -> list[str]:
    """What transformers does otherwise than the model; a sentence each."""
    found = [
        'Pictures: load the processor with backend="pil". Without it, transformers resizes with torchvision, and some '
        "colour values differ by 1 of 255; the folder cannot say which to use."
    ]
    found += clip_pictures.notes(model)
    found += altclip_text.cleaning(model, "transformers")
    most = model.encoder.positions
    found.append(f"Texts: call the processor with truncation=True if a text may have more than {most} tokens.")
    return found


def _is_altclip(model: MultilingualClip) -> bool:
    return kind_of(model) == "altclip"


def _altclip(model: MultilingualClip) -> Any:
    """The model as AltCLIPModel."""
    vision = vision_config(model.image) | {"projection_dim": model.width}
    config = AltCLIPConfig(text_config=sizes(model), vision_config=vision, projection_dim=model.width)
    built = AltCLIPModel(config)
    load_text(built.text_model, model)
    head: Any = model.projector.head
    return _finish(built, model, head[2].weight)


def _dual(model: MultilingualClip) -> Any:
    """The model as VisionTextDualEncoderModel."""
    layers = EncoderLayers(model)
    text = MODEL_MAPPING[type(layers.config)](layers.config, add_pooling_layer=True)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        CLIPVisionConfig(**vision_config(model.image), projection_dim=model.width),
        layers.config,
        projection_dim=model.width,
    )
    built = VisionTextDualEncoderModel(config, text_model=text)
    pooler, projection_DH = _through_tanh(model, layers)
    load(built.text_model, layers.state | {f"pooler.dense.{name}": tensor for name, tensor in pooler.items()})
    return _finish(built, model, projection_DH)


def _finish(built: Any, model: MultilingualClip, projection: Tensor) -> Any:
    state, visual_projection = vision_state(model)
    load(built.vision_model, state)
    with torch.no_grad():
        built.visual_projection.weight.copy_(visual_projection)
        built.text_projection.weight.copy_(projection)
        built.logit_scale.copy_(model.teacher_scale.reshape(()))
    return built.eval()


def _through_tanh(model: MultilingualClip, layers: EncoderLayers) -> tuple[dict[str, Tensor], Tensor]:
    """Weight (H, H) and bias (H,) of the pooler and weight (D, H) of the projection, for the linear head Wx + b.

    The pooler computes s (Ax + c), the projection P / s, with PA = W and Pc = b. If D <= H, A is W with rows of 0. If
    D > H: the states x of a LayerNorm lie in a plane, so H - 1 numbers describe one, and the last one of the pooler's
    outputs is a constant that carries b.
    """
    weight_DH, bias_D = _linear(model.projector.head, layers.width)
    D, H = weight_DH.shape
    if D <= H:
        inner_HH, bias_H = torch.zeros(H, H).double(), torch.zeros(H).double()
        inner_HH[:D], bias_H[:D] = weight_DH, bias_D
        outer_DH = torch.eye(D, H).double()
    else:
        across_H, start_H = _plane(layers)
        basis_HH = torch.linalg.svd(across_H[None]).Vh  # the first row is across the plane, the others lie in it
        inner_HH = torch.cat([basis_HH[1:], torch.zeros(1, H).double()])
        bias_H = torch.cat([-basis_HH[1:] @ start_H, torch.ones(1).double()])
        outer_DH = torch.cat([weight_DH @ basis_HH[1:].T, (weight_DH @ start_H + bias_D)[:, None]], 1)
    with evaluating(model):
        tokens = model.encoder.pad(model.student_tokens(SAMPLES))
        states_NTH = model.encoder(*tokens)
        if model.projector.blocks is not None:
            states_NTH = model.projector.blocks(states_NTH, tokens[1])
    largest = (states_NTH[:, 0].double() @ inner_HH.T + bias_H).abs().max()
    scale = 2.0 ** torch.floor(torch.log2(LINEAR / largest)).item()
    return {"weight": (scale * inner_HH).float(), "bias": (scale * bias_H).float()}, (outer_DH / scale).float()


def _linear(head: nn.Module, width: int) -> tuple[Tensor, Tensor]:
    """Weight (D, H) and bias (D,) of a head of linear maps and standardisations, in float64."""
    weight, bias = torch.eye(width).double(), torch.zeros(width).double()
    for module in head if isinstance(head, nn.Sequential) else [head]:
        if isinstance(module, nn.Linear | NoisyStandardization):
            own, shift = affine(module)
            weight, bias = own @ weight, own @ bias + shift
    return weight, bias


def _plane(layers: EncoderLayers) -> tuple[Tensor, Tensor]:
    """A unit vector (H,) across the plane in which the last LayerNorm's outputs lie, and a point (H,) of the plane."""
    weight_H, bias_H = (layers.state[f"{layers.last}output.LayerNorm.{name}"].double() for name in ("weight", "bias"))
    across_H = 1 / torch.where(weight_H == 0, 1e-30, weight_H)
    return across_H / across_H.norm(), bias_H


def _allowed(model: MultilingualClip, options: Mapping[str, Any]) -> dict[str, float]:
    same = ["texts", "long texts", *clip_pictures.same_pictures(model)]
    if model.text_cleaning == "none":
        same.append("dirty texts")
    return dict.fromkeys(same, TOLERANCE)


FORMAT = Format(
    library="transformers",
    hub=("transformers", "zero-shot-image-classification"),
    packages=("transformers",),
    install="'transformers>=5' torch pillow",
    misfit=misfit,
    write=write,
    allowed=_allowed,
    notes=notes,
    use="""
import transformers
from PIL import Image
from transformers import AutoConfig, AutoProcessor
kind = getattr(transformers, AutoConfig.from_pretrained("{folder}").architectures[0])
model, processor = kind.from_pretrained("{folder}"), AutoProcessor.from_pretrained("{folder}", backend="pil")
texts = ["ein Hund", "ein Baum"]
inputs = processor(text=texts, images=Image.open("photo.jpg"), return_tensors="pt", padding=True)
print(model(**inputs).logits_per_image.softmax(dim=1))
""",
)

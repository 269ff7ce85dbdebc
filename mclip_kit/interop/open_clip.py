"""A model as a folder that open_clip loads by `local-dir:FOLDER`, and with it whatever builds on open_clip.

Only open_clip's own classes are in it, so not every student fits: its Hugging Face text tower (HFTextEncoder) takes
BERT's and (XLM-)RoBERTa's layers, pools `<s>` or the mean, and then has one map, or two with a GELU between, without
biases. What is more than that is written as something that gives the same numbers:

- a linear clip projector goes into the last map of the image tower (and of the teacher's text tower);
- mCLIP's X-projector is more of XLM-R's own layers behind the last one;
- a bias goes into the map before it: see `_Layers.steady`;
- AltCLIP's LayerNorm becomes one more layer that attends to nothing and adds nothing: see `_Layers.layer_norm`.

Shapes: H encoder width, E CLIP width, D embedding, F width between two maps.
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
from mclip_kit.files import write_json
from mclip_kit.models.clip import CONFIG, TEXT, WEIGHTS
from mclip_kit.models.freezing import evaluating
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.projectors import Noise
from mclip_kit.models.safe_load import UNFIT

TOLERANCE = 1e-5
CONTEXT = 77
ENCODERS = ("bert", "roberta", "xlm-roberta")
POOLERS = {"cls": "cls_last_hidden_state_pooler", "mean": "mean_pooler"}
LAST_MAPS = {
    "visual": ("proj", "attnpool.c_proj", "head.proj", "head.mlp.fc2"),  # ViT, ResNet, timm's
    "text": ("text_projection", "proj.2", "proj"),  # CLIP's, Hugging Face's of two maps and of one
}
COMMON = ("embed_dim", "vision_cfg", "quick_gelu", "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale")
SAMPLES = ("a photo of a red apple", "two dogs", "ein roter Apfel", "une pomme rouge", "红苹果", "赤いりんご", "x")

Tower = Literal["student", "teacher"]
State = dict[str, Tensor]


def export_open_clip(
    model: MultilingualClip, folder: str | Path, tower: Tower = "student", context: int = CONTEXT
) -> None:
    """Write an open_clip folder whose embeddings are the model's, within 1e-5; or nothing.

    open_clip cleans every text before its tokenizer (ftfy: curly quotes become straight ones, HTML's escapes become
    letters) and cuts it at `context` tokens; texts that this changes embed a little differently. The config of a
    student's text tower is found by the folder's absolute path, `text_cfg.hf_model_name` in open_clip_config.json,
    which is to be changed when the folder moves.

    Args:
        model: what to export; on the CPU.
        folder: where to; it must not be there yet.
        tower: which text tower goes with the image tower: the multilingual student's, or the CLIP's own.
        context: tokens to which open_clip pads and cuts the student's texts, at most the encoder's positions.
    Raises:
        CheckpointError: open_clip's classes cannot represent the tower, the message says what; the folder is there; or
            open_clip's embeddings are not the model's.
    """
    folder = Path(folder)
    if folder.exists():
        raise CheckpointError(f"{folder}: exists already; remove it or choose another --out")
    state, config, encoder_config = {"student": _student, "teacher": _teacher}[tower](model, context)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, part / WEIGHTS, {"format": "pt"})
        tokenizer = model.clip[0].tokenizer
        if tower == "student":
            model.encoder.tokenizer.save(part)
        elif isinstance(tokenizer, HFTokenizer):
            tokenizer.save_pretrained(part)
        if encoder_config is not None:
            encoder_config.save_pretrained(part / TEXT)
        for home in (part, folder):  # open_clip looks for the text tower's config where this one says
            if encoder_config is not None:
                config["text_cfg"]["hf_model_name"] = str(home.resolve() / TEXT)
            write_json(part / CONFIG, {"model_cfg": config, "preprocess_cfg": model.clip[0].preprocess})
            if home is part:
                _compare(model, part, tower, context)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _teacher(model: MultilingualClip, _: int) -> tuple[State, dict[str, Any], Any]:
    """Weights, open_clip's config, and that of a Hugging Face text tower: of the CLIP, in the model's space."""
    state, config = _clip(model, ("visual", "text"))
    text = model.clip[0].model.text
    return state, config, deepcopy(text.config) if isinstance(text, HFTextEncoder) else None


def _student(model: MultilingualClip, context: int) -> tuple[State, dict[str, Any], Any]:
    """The same of the image tower and the student."""
    state, config = _clip(model, ("visual",))
    kind, how = model.encoder.config.model_type, model.projector.how
    if kind not in ENCODERS:
        raise CheckpointError(_cannot(f"takes {', '.join(ENCODERS)}", f"a {kind} encoder"))
    if how not in POOLERS:
        raise CheckpointError(_cannot("pools the first token or the mean", f"pool: {how}"))
    layers = _Layers(model)
    stages = _stages(layers, model.projector.head, how, _variance(model))
    steady_H, shift_H = layers.steady() if any(bias.any() for _, bias in stages) else torch.zeros(2, layers.width)
    maps, kind = _without_biases(stages, steady_H.double(), shift_H.double(), (layers.width + model.width) // 2)
    proj = {f"proj.{name}": weight.float() for name, weight in maps.items()}
    text = {f"transformer.{name}": tensor for name, tensor in layers.state.items()} | proj
    config["vision_cfg"].pop("output_tokens", None)  # CoCa's, for the decoder that is left out
    config = {key: config[key] for key in COMMON if key in config} | {
        "custom_text": True,
        "text_cfg": {
            "hf_tokenizer_name": "beside this file",
            "hf_proj_type": kind,
            "hf_pooler_type": POOLERS[how],
            "context_length": min(context, model.encoder.positions),
        },
    }
    kept = {name: tensor for name, tensor in state.items() if name.startswith(("visual.", "logit_"))}
    return kept | {f"text.{name}": tensor for name, tensor in text.items()}, config, layers.config


def _cannot(it: str, what: str) -> str:
    return (
        f"open_clip's text tower {it}; it cannot represent {what}. The CLIP's own text can be exported: --tower teacher"
    )


def _clip(model: MultilingualClip, towers: Sequence[str]) -> tuple[State, dict[str, Any]]:
    """The CLIP's weights and config; a linear clip projector is in the last maps of the towers."""
    clip = model.clip[0]
    state = {name: tensor.detach().cpu() for name, tensor in clip.model.state_dict().items()}
    state["logit_scale"] = model.teacher_scale.detach().cpu()
    if isinstance(model.clip_projector, nn.Linear):
        fold_DE = model.clip_projector.weight.detach().cpu().double()
        for tower in towers:
            _fold(state, tower, fold_DE)
    return state, {**deepcopy(clip.config), "embed_dim": model.width, "custom_text": True}


def _fold(state: State, tower: str, fold_DE: Tensor) -> None:
    for name in (f"{tower}.{last}" for last in LAST_MAPS[tower]):
        if name in state:  # a bare matrix, from width to E
            state[name] = (state[name].double() @ fold_DE.T).float()
            return
        if f"{name}.weight" in state:
            for part in (f"{name}.weight", f"{name}.bias"):
                if part in state:
                    state[part] = (fold_DE @ state[part].double()).float()
            return
    raise CheckpointError(
        f"the clip projector has no map to go into: the CLIP's {tower} tower ends in none that is known"
    )


class _Layers:
    """An encoder's weights and config, to which layers are added."""

    def __init__(self, model: MultilingualClip) -> None:
        encoder: nn.Module = model.encoder.model
        self.state = {name: tensor.detach().cpu() for name, tensor in encoder.state_dict().items()}
        self.config = deepcopy(model.encoder.config)
        self.width = model.encoder.width
        for layer in model.projector.blocks.layers if model.projector.blocks is not None else ():
            self.add({name: tensor.detach().cpu() for name, tensor in layer.state_dict().items()})

    @property
    def last(self) -> str:
        """What the last layer's weights begin with."""
        return f"encoder.layer.{self.config.num_hidden_layers - 1}."

    def add(self, layer: State) -> None:
        """One more layer behind the last."""
        self.config.num_hidden_layers += 1
        self.state |= {self.last + name: tensor for name, tensor in layer.items()}

    def layer_norm(self, module: nn.LayerNorm, variance: float) -> None:
        """Put a LayerNorm over each token behind the last layer.

        A layer is LN2(LN1(x + attention) + feed-forward), and with zeros for weights LN2(LN1(x)). The second undoes the
        scale of the first, all but its epsilon: the variance v becomes v + e (v + e) / s^2 where LN1's weight is s, and
        should become v + the module's own epsilon, as it does where v is the usual variance.
        """
        e = self.config.layer_norm_eps
        layer = {
            name.removeprefix(self.last): torch.zeros_like(tensor)
            for name, tensor in self.state.items()
            if name.startswith(self.last)
        }
        layer["attention.output.LayerNorm.weight"] += (e * (variance + e) / module.eps) ** 0.5
        layer["output.LayerNorm.weight"] = module.weight.detach().cpu()
        layer["output.LayerNorm.bias"] = module.bias.detach().cpu()
        self.add(layer)

    def steady(self) -> tuple[Tensor, Tensor]:
        """Change the last bias so that something of every state is always 1.

        What a LayerNorm gives, (x - mean) / std * weight + bias, lies in one plane: divided by the weights, its sum is
        that of the biases, whatever x is. The bias is moved across that plane, to keep far from a sum of 0.

        Returns:
            u (H,) with u . state = 1, also for a mean of states, and what was added to each of them (H,).
        """
        weight_H, bias_H = (self.state[f"{self.last}output.LayerNorm.{name}"].double() for name in ("weight", "bias"))
        across_H = 1 / torch.where(weight_H == 0, 1e-30, weight_H)
        across_H /= across_H.norm()
        moved_H = bias_H + across_H * torch.copysign(weight_H.norm(), across_H @ bias_H)
        self.state[f"{self.last}output.LayerNorm.bias"] = moved_H.float()
        moved_H = moved_H.float().double()
        return across_H / (across_H @ moved_H), moved_H - bias_H


def _variance(model: MultilingualClip) -> float:
    """Of the numbers of a first token's state, as texts usually have it."""
    with evaluating(model.encoder):
        states_NH = model.encoder(*model.encoder.pad(model.student_tokens(SAMPLES)))[:, 0]
    return float(states_NH.double().var(1, correction=0).mean())


def _stages(layers: _Layers, head: nn.Module, how: str, variance: float) -> list[tuple[Tensor, Tensor]]:
    """The maps of a head, weight and bias in float64, with a GELU between any two; a LayerNorm becomes a layer."""
    modules = list(head) if isinstance(head, nn.Sequential) else [head]
    if isinstance(modules[0], nn.LayerNorm):
        if how != "cls":
            raise CheckpointError(_cannot("has no LayerNorm behind its pool", f"altclip with pool: {how}, only cls"))
        layers.layer_norm(modules.pop(0), variance)  # type: ignore[arg-type]
    stages, fresh = list[tuple[Tensor, Tensor]](), True
    for module in modules:
        if isinstance(module, nn.GELU):
            fresh = True
        elif not isinstance(module, nn.Dropout | nn.Identity):
            weight, bias = _affine(module)
            if not fresh:
                before, before_bias = stages.pop()
                weight, bias = weight @ before, weight @ before_bias + bias
            stages.append((weight, bias))
            fresh = False
    return stages


def _affine(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight (out, in) and bias (out,) of a linear map or of a standardisation by running statistics."""
    if isinstance(module, Noise):
        mean_H, variance_H = (module.norm.get_buffer(f"running_{name}").cpu().double() for name in ("mean", "var"))
        scale_H = (variance_H + module.norm.eps).rsqrt()
        return scale_H.diag(), -mean_H * scale_H
    assert isinstance(module, nn.Linear)
    weight = module.weight.detach().cpu().double()
    bias = module.bias.detach().cpu().double() if module.bias is not None else torch.zeros(len(weight)).double()
    return weight, bias


def _without_biases(
    stages: list[tuple[Tensor, Tensor]], steady_H: Tensor, shift_H: Tensor, between: int
) -> tuple[State, str | None]:
    """Maps without biases over shifted states, under open_clip's names, and what it calls their kind."""
    if not stages:
        return {}, None
    (first, bias), *rest = stages
    first = first + torch.outer(bias - first @ shift_H, steady_H)
    if not rest:
        return {"weight": first}, "linear"
    ((second_DF, bias_D),) = rest
    wanted = len(first) + bool(bias_D.any())
    if wanted > between:
        raise CheckpointError(_cannot(f"has {between} units, (H + D) / 2, between two maps", f"the mlp's {wanted}"))
    constant = 10.0  # GELU leaves it as it is
    first_FH, out_DF = torch.zeros(between, first.shape[1]).double(), torch.zeros(len(second_DF), between).double()
    first_FH[: len(first)], out_DF[:, : len(first)] = first, second_DF
    if bias_D.any():
        first_FH[len(first)], out_DF[:, len(first)] = constant * steady_H, bias_D / constant
    return {"0.weight": first_FH, "2.weight": out_DF}, "mlp"


def _compare(model: MultilingualClip, folder: Path, tower: Tower, context: int) -> None:
    """Load the folder as a stranger would, and compare its embeddings with the model's."""
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
            apart = {what: float((theirs - ours).abs().max()) for what, (theirs, ours) in found.items()}
    except UNFIT as error:
        raise CheckpointError(f"open_clip cannot load what was exported: {first_line(error)}") from None
    for what, difference in apart.items():
        if not difference <= TOLERANCE:
            raise CheckpointError(
                f"open_clip's {what} embeddings would be {difference:.1e} from the model's; not exported"
            )

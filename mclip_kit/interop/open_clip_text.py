"""A student as weights of open_clip's Hugging Face text tower (HFTextEncoder), which has no biases after its pool.

Everything that the tower lacks is written as something that gives the same numbers:

- layers of mCLIP's X-projector are appended to the encoder's layers;
- a bias moves into the map before it: see `EncoderLayers.constant_direction`;
- AltCLIP's LayerNorm becomes one more layer without attention and feed-forward: see `EncoderLayers.append_layer_norm`.

Shapes: N texts, H encoder width, D embedding, F width between two maps.
"""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from mclip_kit.errors import CheckpointError
from mclip_kit.models.freezing import evaluating
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.projectors import NoisyStandardization
from mclip_kit.models.safe_load import StateDict

SAMPLES = ("a photo of a red apple", "two dogs", "ein roter Apfel", "une pomme rouge", "红苹果", "赤いりんご", "x")
ENCODERS = ("bert", "roberta", "xlm-roberta")
POOLERS = {"cls": "cls_last_hidden_state_pooler", "mean": "mean_pooler"}


def student_text(model: MultilingualClip) -> tuple[StateDict, dict[str, Any], Any]:
    """The student as HFTextEncoder: its weights, its options in open_clip's text_cfg, its transformers config.

    Raises:
        CheckpointError: HFTextEncoder cannot represent the student.
    """
    kind, pooling = model.encoder.config.model_type, model.projector.pooling
    if kind not in ENCODERS:
        raise _cannot(f"takes {', '.join(ENCODERS)}", f"a {kind} encoder", "an XLM-R")
    if pooling not in POOLERS:
        raise _cannot("pools the first token or the mean", f"pool: {pooling}", "pool: cls or mean")
    layers = EncoderLayers(model)
    stages = _stages(layers, model.projector.head, pooling, _variance(model))
    has_bias = any(bias.any() for _, bias in stages)
    constant_H, shift_H = layers.constant_direction() if has_bias else torch.zeros(2, layers.width)
    between = (layers.width + model.width) // 2
    maps, kind = _without_biases(stages, constant_H.double(), shift_H.double(), between)
    state = {f"transformer.{name}": tensor for name, tensor in layers.state.items()}
    state |= {f"proj.{name}": weight.float() for name, weight in maps.items()}
    return state, {"hf_proj_type": kind, "hf_pooler_type": POOLERS[pooling]}, layers.config


def _cannot(it: str, what: str, instead: str) -> CheckpointError:
    """The error for what open_clip's text tower lacks, and what to train instead."""
    return CheckpointError(
        f"open_clip's text tower {it}; it cannot represent {what}. Train a student with {instead}, or export the "
        "CLIP's own text tower: --tower teacher"
    )


class EncoderLayers:
    """An encoder's weights and config, to which layers can be appended."""

    def __init__(self, model: MultilingualClip) -> None:
        encoder: nn.Module = model.encoder.model
        self.state = {name: tensor.detach().cpu() for name, tensor in encoder.state_dict().items()}
        self.config = deepcopy(model.encoder.config)
        self.width = model.encoder.width
        for layer in model.projector.blocks.layers if model.projector.blocks is not None else ():
            self.append({name: tensor.detach().cpu() for name, tensor in layer.state_dict().items()})

    @property
    def last(self) -> str:
        """Prefix of the last layer's weights."""
        return f"encoder.layer.{self.config.num_hidden_layers - 1}."

    def append(self, layer: StateDict) -> None:
        """Append one layer."""
        self.config.num_hidden_layers += 1
        self.state |= {self.last + name: tensor for name, tensor in layer.items()}

    def append_layer_norm(self, module: nn.LayerNorm, variance: float) -> None:
        """Append a LayerNorm over each token, as a layer.

        A layer is LN2(LN1(x + attention) + feed-forward); if its other weights are 0, LN2(LN1(x)). LN2 undoes the scale
        of LN1 except for the epsilon e: LN2 divides by the root of v + e (v + e) / s^2, where v is the variance of x
        and s the weight of LN1. The module divides by the root of v + its own epsilon; s makes both equal

        Args:
            module: the LayerNorm, which becomes LN2.
            variance: where both are equal, the usual variance of x over its H numbers.
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
        self.append(layer)

    def constant_direction(self) -> tuple[Tensor, Tensor]:
        """Change the last bias so that one direction of every state is always 1; it can carry later biases.

        The outputs of a LayerNorm, (x - mean) / std * weight + bias, lie in a plane: divided by the weights, they sum
        to the same number for every x. The bias is moved across that plane, so that this number is not near 0.

        Returns:
            u (H,) with u . state = 1 for every state and every mean of states; and what was added to each state (H,).
        """
        weight_H, bias_H = (self.state[f"{self.last}output.LayerNorm.{name}"].double() for name in ("weight", "bias"))
        across_H = 1 / torch.where(weight_H == 0, 1e-30, weight_H)
        across_H /= across_H.norm()
        moved_H = bias_H + across_H * torch.copysign(weight_H.norm(), across_H @ bias_H)
        self.state[f"{self.last}output.LayerNorm.bias"] = moved_H.float()
        moved_H = moved_H.float().double()
        return across_H / (across_H @ moved_H), moved_H - bias_H


def _variance(model: MultilingualClip) -> float:
    """The usual variance of the H numbers of a first token's state."""
    with evaluating(model.encoder):
        states_NH = model.encoder(*model.encoder.pad(model.student_tokens(SAMPLES)))[:, 0]
    return float(states_NH.double().var(1, correction=0).mean())


def _stages(layers: EncoderLayers, head: nn.Module, pooling: str, variance: float) -> list[tuple[Tensor, Tensor]]:
    """The linear maps of a head, (weight, bias) in float64, with a GELU between two; a LayerNorm becomes a layer."""
    modules = list(head) if isinstance(head, nn.Sequential) else [head]
    if isinstance(modules[0], nn.LayerNorm):
        if pooling != "cls":
            raise _cannot("has no LayerNorm after its pool", f"altclip with pool: {pooling}", "pool: cls")
        layers.append_layer_norm(modules.pop(0), variance)  # type: ignore[arg-type]
    stages, fresh = list[tuple[Tensor, Tensor]](), True
    for module in modules:
        if isinstance(module, nn.GELU):
            fresh = True
        elif not isinstance(module, nn.Dropout | nn.Identity):
            weight, bias = affine(module)
            if not fresh:
                before, before_bias = stages.pop()
                weight, bias = weight @ before, weight @ before_bias + bias
            stages.append((weight, bias))
            fresh = False
    return stages


def affine(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight (out, in) and bias (out,) of a linear map, or of a standardisation by running mean and variance."""
    if isinstance(module, NoisyStandardization):
        mean_H, variance_H = (module.norm.get_buffer(f"running_{name}").cpu().double() for name in ("mean", "var"))
        scale_H = (variance_H + module.norm.eps).rsqrt()
        return scale_H.diag(), -mean_H * scale_H
    assert isinstance(module, nn.Linear)
    weight = module.weight.detach().cpu().double()
    bias = module.bias.detach().cpu().double() if module.bias is not None else torch.zeros(len(weight)).double()
    return weight, bias


def _without_biases(
    stages: list[tuple[Tensor, Tensor]], constant_H: Tensor, shift_H: Tensor, between: int
) -> tuple[StateDict, str | None]:
    """Maps without biases for shifted states, under open_clip's names, and its `hf_proj_type`."""
    if not stages:
        return {}, None
    (first, bias), *rest = stages
    first = first + torch.outer(bias - first @ shift_H, constant_H)
    if not rest:
        return {"weight": first}, "linear"
    ((second_DF, bias_D),) = rest
    wanted = len(first) + bool(bias_D.any())
    if wanted > between:
        most = between - bool(bias_D.any())
        raise _cannot(
            f"has {between} units, (H + D) / 2, between two maps", f"the mlp's {wanted}", f"hidden: {most} or less"
        )
    constant = 10.0  # GELU(10) is 10
    first_FH, out_DF = torch.zeros(between, first.shape[1]).double(), torch.zeros(len(second_DF), between).double()
    first_FH[: len(first)], out_DF[:, : len(first)] = first, second_DF
    if bias_D.any():
        first_FH[len(first)], out_DF[:, len(first)] = constant * constant_H, bias_D / constant
    return {"0.weight": first_FH, "2.weight": out_DF}, "mlp"

"""Projectors: token states of the encoder to the student embedding.

Shapes: B batch, T tokens, H encoder width, D embedding. Every projector is blocks -> pool -> head. Only mCLIP's
X-projector has blocks; projectors without blocks can be trained on cached pooled states alone.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaLayer

from mclip_kit.models.text_encoder import xlmr_config

Pool = Literal["eos", "cls", "mean"]


def pool(states_BTH: Tensor, mask_BT: Tensor, kind: Pool) -> Tensor:
    """One state per text, (B, H).

    Args:
        states_BTH: token states.
        mask_BT: 1 for tokens, 0 for padding on the right.
        kind: `eos` (the last token, `</s>`), `cls` (the first token, `<s>`) or `mean` (over the tokens, in float32 at
            least).
    """
    if kind == "cls":
        return states_BTH[:, 0]
    if kind == "eos":
        last_B = mask_BT.sum(1) - 1
        return states_BTH[torch.arange(states_BTH.shape[0], device=states_BTH.device), last_B]
    if states_BTH.dtype.itemsize < torch.float32.itemsize:
        states_BTH = states_BTH.float()
    weights_BT1 = mask_BT.unsqueeze(-1).to(states_BTH.dtype)
    return (states_BTH * weights_BT1).sum(1) / weights_BT1.sum(1)


class Projector(nn.Module):
    """Token states (B, T, H) and mask (B, T) to student embeddings (B, D)."""

    def __init__(self, pooling: Pool, head: nn.Module, blocks: "Blocks | None" = None) -> None:
        super().__init__()
        self.pooling = pooling
        self.blocks = blocks
        self.head = head

    def pool(self, states_BTH: Tensor, mask_BT: Tensor) -> Tensor:
        """Pooled states (B, H)."""
        if self.blocks is not None:
            return self.blocks.pooled(states_BTH, mask_BT, self.pooling)
        return pool(states_BTH, mask_BT, self.pooling)

    def forward(self, states_BTH: Tensor, mask_BT: Tensor) -> Tensor:
        """Student embeddings (B, D), not normalised."""
        pooled_BH = self.pool(states_BTH, mask_BT)
        numbers = next((weight.dtype for weight in self.head.parameters()), pooled_BH.dtype)
        embedding: Tensor = self.head(pooled_BH.to(numbers))  # weights of a converted model may be of half precision
        return embedding

    @torch.no_grad()
    def one_map(self) -> nn.Sequential:
        """The head, which ends with two linear maps, with their product in their place: the same function."""
        assert isinstance(self.head, nn.Sequential)
        *before, first, last = self.head
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        product = nn.Linear(first.in_features, last.out_features, device=first.weight.device, dtype=first.weight.dtype)
        weight_DI = last.weight.double()
        product.weight.copy_(weight_DI @ first.weight.double())
        product.bias.copy_(weight_DI @ first.bias.double() + last.bias)
        return nn.Sequential(*before, product)


class Blocks(nn.Module):
    """mCLIP's X-projector: more post-norm layers of XLM-R over all token states (ACL 2023, section 3.2)."""

    def __init__(self, config: Any, layers: int, dropout: float) -> None:
        super().__init__()
        block = xlmr_config(  # XLM-R's layer at the encoder's sizes, whatever the encoder is
            width=config.hidden_size,
            layers=layers,
            heads=config.num_attention_heads,
            ffn=getattr(config, "intermediate_size", 4 * config.hidden_size),
            dropout=dropout,
            vocabulary=0,  # the blocks have no tables
            position_rows=0,
            attention_dropout=getattr(config, "attention_probs_dropout_prob", 0.1),
            layer_norm_eps=getattr(config, "layer_norm_eps", 1e-5),
        )
        block._attn_implementation = "sdpa"
        self.layers = nn.ModuleList(XLMRobertaLayer(block) for _ in range(layers))
        for name, weight in self.named_parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=block.initializer_range)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def forward(self, states_BTH: Tensor, mask_BT: Tensor) -> Tensor:
        """States (B, T, H)."""
        return self._through(len(self.layers), states_BTH, mask_BT)

    def pooled(self, states_BTH: Tensor, mask_BT: Tensor, kind: Pool) -> Tensor:
        """Pooled states (B, H) of `forward`; for `cls` and `eos` the last layer computes only the pooled token."""
        if kind == "mean":
            return pool(self(states_BTH, mask_BT), mask_BT, kind)
        states_BTH = self._through(len(self.layers) - 1, states_BTH, mask_BT)
        return _at(self.layers[-1], pool(states_BTH, mask_BT, kind), states_BTH, mask_BT)

    def _through(self, layers: int, states_BTH: Tensor, mask_BT: Tensor) -> Tensor:
        mask_BTT = mask_BT[:, None, None, :].bool().expand(-1, 1, mask_BT.shape[1], -1)
        for layer in self.layers[:layers]:
            out = layer(states_BTH, mask_BTT)
            states_BTH = out[0] if isinstance(out, tuple) else out
        return states_BTH


def _at(layer: Any, own_BH: Tensor, states_BTH: Tensor, mask_BT: Tensor) -> Tensor:
    """The output of one XLM-R layer for one token per text, (B, H), which attends to all tokens."""
    attention = layer.attention.self
    heads = (own_BH.shape[0], -1, attention.num_attention_heads, attention.attention_head_size)
    query, key, value = (
        project(states).view(heads).transpose(1, 2)
        for project, states in (
            (attention.query, own_BH),
            (attention.key, states_BTH),
            (attention.value, states_BTH),
        )
    )
    dropout = attention.dropout.p if layer.training else 0.0
    seen = F.scaled_dot_product_attention(query, key, value, mask_BT[:, None, None, :].bool(), dropout)
    attended_BH = layer.attention.output(seen.transpose(1, 2).flatten(1), own_BH)
    out: Tensor = layer.output(layer.intermediate(attended_BH), attended_BH)
    return out


class NoisyStandardization(nn.Module):
    """Standardise pooled states by running mean and variance; in training mode, add Gaussian noise.

    A frozen encoder puts texts of languages that were not trained near those of trained languages, but not at the same
    points. A projector that is trained with noise is smooth in between.
    """

    def __init__(self, width: int, std: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.std = std

    def forward(self, pooled_BH: Tensor) -> Tensor:
        """Standardised states (B, H)."""
        pooled_BH = self.norm(pooled_BH)
        return pooled_BH + self.std * torch.randn_like(pooled_BH) if self.training else pooled_BH


def build_projector(
    kind: Literal["linear", "mlp", "altclip", "transformer"],
    pool: Pool,
    config: Any,
    width: int,
    layers: int = 2,
    hidden: int | None = None,
    dropout: float = 0.0,
    noise: float = 0.0,
) -> Projector:
    """A projector by kind.

    Args:
        kind: `linear` (H -> D, or H -> hidden -> D: M2M, arXiv 2601.10096); `mlp` (H -> hidden -> D, GELU); `altclip`
            (LayerNorm, linear, bias-free projection: arXiv 2211.06679); `transformer` (mCLIP's X-projector, then a
            linear map only where H differs from D).
        pool: which states are pooled.
        config: the encoder's transformers config; its hidden_size is H.
        width: D.
        layers: transformer: the number of layers.
        hidden: inner width; linear: none, one map; mlp: default 4 H; altclip: default D.
        dropout: mlp and transformer: dropout probability.
        noise: linear and mlp: standard deviation of `NoisyStandardization`; 0 leaves it out.
    """
    H = int(config.hidden_size)
    if kind == "transformer":
        head = nn.Identity() if width == H else nn.Linear(H, width, bias=False)
        return Projector(pool, head, Blocks(config, layers, dropout))
    if kind == "altclip":
        inner = hidden or width
        return Projector(pool, nn.Sequential(nn.LayerNorm(H), nn.Linear(H, inner), nn.Linear(inner, width, bias=False)))
    before: list[nn.Module] = [NoisyStandardization(H, noise)] if noise else []
    if kind == "linear":
        maps = [nn.Linear(H, hidden), nn.Linear(hidden, width)] if hidden else [nn.Linear(H, width)]
        return Projector(pool, nn.Sequential(*before, *maps))
    inner = hidden or 4 * H
    layers_ = [nn.Linear(H, inner), nn.GELU(), nn.Dropout(dropout), nn.Linear(inner, width)]
    return Projector(pool, nn.Sequential(*before, *layers_))

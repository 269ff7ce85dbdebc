"""Self-attention of open_clip's blocks, faster in training than torch's module, with the same bits."""

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.MultiheadAttention):
    """torch's module with the same weights, whose queries, keys and values are views of one tensor.

    torch selects each of them from the packed tensor, so the backward pass fills three tensors of its size with zeros
    and adds them up; here it writes one. In eval mode, and for calls that open_clip's blocks do not make, it is torch's
    own.
    """

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *options: Any, **named: Any) -> tuple[Tensor, Any]:
        """Output (B, T, D) and no weights; arguments as of torch's module."""
        mask_TT = named.get("attn_mask")
        only = not options and named.keys() <= {"need_weights", "attn_mask"} and named.get("need_weights") is False
        plain = mask_TT is None or (mask_TT.dim() == 2 and mask_TT.is_floating_point())
        if not (self.training and query is key is value and query.dim() == 3 and only and plain):
            return cast(tuple[Tensor, Any], super().forward(query, key, value, *options, **named))
        T, D = query.shape[1:]
        packed = F.linear(query.transpose(0, 1), self.in_proj_weight, self.in_proj_bias)
        heads = packed.unflatten(-1, (3, self.num_heads, -1)).permute(2, 1, 3, 0, 4).unbind(0)
        mask = None if mask_TT is None else mask_TT[None, None]
        seen_BHTd = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], mask)
        rows = seen_BHTd.permute(2, 0, 1, 3).reshape(-1, D)  # in torch's order, so that sums have the same bits
        return F.linear(rows, self.out_proj.weight, self.out_proj.bias).view(T, -1, D).transpose(0, 1), None


def speed_up(model: nn.Module) -> None:
    """Make the attention of open_clip's blocks, of whatever tower, `SelfAttention`; weights and names stay."""
    for part in model.modules():
        if type(part) is nn.MultiheadAttention and _fits(part):
            part.__class__ = SelfAttention


def _fits(part: nn.MultiheadAttention) -> bool:
    extras = part.bias_k is not None or part.add_zero_attn or part.dropout
    return part.batch_first and part.in_proj_weight is not None and not extras

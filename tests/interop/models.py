"""Small models for exports."""

from pathlib import Path
from typing import Any

import torch

from mclip_kit.data.tokenizer import XlmrTokenizer
from mclip_kit.models.clip import build_clip
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.text_encoder import new_encoder


def build(data: Path, projector: dict[str, Any], clip_projector: str, width: int, teacher: Any) -> MultilingualClip:
    """A model of tiny towers in which every bias, norm and running statistic is something."""
    torch.manual_seed(0)
    encoder = new_encoder(1, width, 2, 32, 0.1, 32, XlmrTokenizer(data / "bitext"))
    model = MultilingualClip(build_clip(teacher), encoder, projector, clip_projector).eval()
    with torch.no_grad():
        for weight in (w for w in model.parameters() if w.dim() == 1):
            weight.add_(0.3 * torch.randn_like(weight))
        for name, statistic in model.named_buffers():
            if "running" in name:
                statistic.uniform_(0.3, 3)
    return model

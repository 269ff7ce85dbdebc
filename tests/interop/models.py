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


def stable_diffusion(folder: Path, width: int) -> Path:
    """Write a Stable Diffusion of random weights for token states of a width; its own text encoder is CLIP's."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    pipe: Any = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=2),
        text_encoder=CLIPTextModel(CLIPTextConfig(hidden_size=width, num_hidden_layers=1, num_attention_heads=2)),
        tokenizer=None,
        unet=diffusers.UNet2DConditionModel(
            sample_size=16,
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            block_out_channels=(8,),
            norm_num_groups=2,
            attention_head_dim=4,
            cross_attention_dim=width,
        ),
        scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder)
    return folder

"""An exported folder, read by diffusers: what a Stable Diffusion pipeline gives its UNet."""

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import AltCLIPTextModel, AutoTokenizer


def load(folder):  # type: ignore[no-untyped-def]
    """A function that embeds texts; None for pictures. The pipeline's UNet and VAE are as small as they can be."""
    text_encoder = AltCLIPTextModel.from_pretrained(f"{folder}/text_encoder")
    down, up = ("CrossAttnDownBlock2D",), ("CrossAttnUpBlock2D",)
    pipe: Any = StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(4,), norm_num_groups=1),
        text_encoder=text_encoder,
        tokenizer=AutoTokenizer.from_pretrained(f"{folder}/tokenizer"),
        unet=UNet2DConditionModel(
            sample_size=4,
            down_block_types=down,
            up_block_types=up,
            block_out_channels=(4,),
            norm_num_groups=1,
            attention_head_dim=4,
            cross_attention_dim=text_encoder.config.project_dim,
        ),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )

    def encode_texts(texts):  # type: ignore[no-untyped-def]
        with torch.no_grad():
            states, _ = pipe.encode_prompt(texts, "cpu", 1, do_classifier_free_guidance=False)
        return torch.nn.functional.normalize(states, dim=-1)

    return encode_texts, None

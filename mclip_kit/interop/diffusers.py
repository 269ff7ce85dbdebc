"""Export a student as the text encoder and tokenizer of a Stable Diffusion pipeline of diffusers, as AltDiffusion.

A Stable Diffusion UNet attends to the token states of its text encoder. AltDiffusion, which came with AltCLIP (arXiv
2211.06679), gives it those of AltCLIP's student: the states of XLM-R's last layer, each through the head's linear map
(RobertaSeriesModelWithTransformation in diffusers). The folder has

    text_encoder/   transformers' AltCLIPTextModel; its first output, (B, T, F), is LayerNorm and linear map of all T
    tokenizer/      pads and cuts prompts at T tokens

Padding is part of what the UNet sees: diffusers gives it all T states, and masks padding inside the encoder only
(`use_attention_mask`).

Shapes: B prompts, T tokens, F width of the mapped token states (`projector.hidden`).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AltCLIPTextConfig, AltCLIPTextModel

from mclip_kit.files import follow_umask
from mclip_kit.interop import altclip_text
from mclip_kit.interop.export import Format
from mclip_kit.models.freezing import evaluating
from mclip_kit.models.hub import quiet_transformers
from mclip_kit.models.multilingual_clip import MultilingualClip

TOLERANCE = 1e-5
CONTEXT = 77
"""Tokens of a prompt in Stable Diffusion, and in AltDiffusion."""


def write(model: MultilingualClip, folder: Path, options: Mapping[str, Any]) -> None:
    """Write a text encoder and a tokenizer.

    Args:
        model: on the CPU, float32; `misfit` gives None for it.
        folder: exists and is empty.
        options: `context`: tokens to which prompts are padded and cut, at most the encoder's positions.
    """
    encoder, tokenizer = folder / "text_encoder", folder / "tokenizer"
    with quiet_transformers():
        built = AltCLIPTextModel(AltCLIPTextConfig(**altclip_text.sizes(model), use_attention_mask=True)).eval()
        altclip_text.load_text(built, model)
        built.save_pretrained(encoder)
        follow_umask(encoder)
        tokenizer.mkdir()
        model.encoder.tokenizer.save(tokenizer)
        altclip_text.settle_tokenizer(tokenizer, _context(model, options))


def misfit(model: MultilingualClip, options: Mapping[str, Any]) -> str | None:
    """Why no text encoder of diffusers fits, in one sentence; None: AltCLIPTextModel does."""
    kind = altclip_text.kind_of(model)
    if kind != "altclip":
        return (
            "AltDiffusion conditions on token states that head altclip maps; a head "
            f"{kind} maps pooled states; train with projector.kind: altclip"
        )
    return altclip_text.misfit(model)


def token_states(model: MultilingualClip, texts: list[str], context: int) -> Tensor:
    """What a Stable Diffusion UNet attends to: mapped token states (B, T, F), padding included.

    >>> token_states(model, ["ein Hund", "一只狗"], 77).shape
    torch.Size([2, 64, 192])

    Args:
        model: with head altclip.
        texts: B prompts.
        context: T, or the encoder's positions if that is less.
    """
    tokens = model.student_tokens(texts, context)
    room = min(context, model.encoder.positions)
    with evaluating(model):
        ids_BT, mask_BT = model.encoder.pad(tokens)
        missing = (0, room - ids_BT.shape[1])
        ids_BT, mask_BT = F.pad(ids_BT, missing, value=model.encoder.tokenizer.pad), F.pad(mask_BT, missing)
        head: Any = model.projector.head
        states_BTF: Tensor = head[1](head[0](model.encoder(ids_BT, mask_BT)))
    return states_BTF


def notes(model: MultilingualClip, options: Mapping[str, Any]) -> list[str]:
    """What to know of the folder; a sentence each."""
    width, room = altclip_text.sizes(model)["project_dim"], _context(model, options)
    found = [
        f"Token states have the shape (prompts, {room}, {width}). The UNet needs cross_attention_dim: {width}, and "
        "must have been trained on these states, as AltDiffusion's was; another one does not understand them.",
        "The differences are those of token states, each scaled to length 1.",
    ]
    found += altclip_text.cleaning(model, "diffusers")
    return found


def _context(model: MultilingualClip, options: Mapping[str, Any]) -> int:
    return min(int(options["context"]), model.encoder.positions)


def _allowed(model: MultilingualClip, options: Mapping[str, Any]) -> dict[str, float]:
    same = ["texts", "long texts", *(["dirty texts"] if model.text_cleaning == "none" else [])]
    return dict.fromkeys(same, TOLERANCE)


def _encode_text(model: MultilingualClip, options: Mapping[str, Any]) -> Callable[[list[str]], Any]:
    return lambda texts: F.normalize(token_states(model, texts, options["context"]), dim=-1).to(torch.float32)


FORMAT = Format(
    library="diffusers",
    hub=("diffusers", "feature-extraction"),
    packages=("diffusers",),
    extra="diffusers",
    install="diffusers 'transformers>=5' torch",
    misfit=misfit,
    write=write,
    allowed=_allowed,
    notes=notes,
    encode_text=_encode_text,
    options={"context": CONTEXT},
    use="""
from diffusers import StableDiffusionPipeline
from transformers import AltCLIPTextModel, AutoTokenizer
text_encoder = AltCLIPTextModel.from_pretrained("{folder}/text_encoder")
tokenizer = AutoTokenizer.from_pretrained("{folder}/tokenizer")
pipe = StableDiffusionPipeline.from_pretrained("ALT_DIFFUSION", text_encoder=text_encoder, tokenizer=tokenizer)
pipe("一只狗").images[0].save("dog.png")
""",
)

"""Teachers that a user may bring: open_clip's own configs of today's CLIPs at small sizes, with random weights.

`test_clip_kinds.py` checks what each can do, and `docs/make_encoders.py` writes it into docs/encoders.md.
"""

import json
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from open_clip.factory import get_model_config
from safetensors.torch import save_file
from tokenizers import Tokenizer, processors
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from mclip_kit.models.clip import Clip
from mclip_kit.train.optim import cannot_checkpoint

TEACHERS: dict[str, tuple[str, str]] = {
    "CLIP": ("ViT-B-32-quickgelu", ""),
    "CLIP, ResNet": ("RN50", ""),
    "ConvNeXt": ("convnext_base", "test_convnext"),
    "EVA02": ("EVA02-B-16", "eva02_tiny_patch14_224"),
    "MetaCLIP 2": ("ViT-H-14-worldwide-quickgelu", ""),
    "MobileCLIP2": ("MobileCLIP2-S0", "fastvit_t8"),
    "PE Core": ("PE-Core-T-16-384", "vit_pe_core_tiny_patch16_384"),
    "SigLIP 2": ("ViT-B-16-SigLIP2", "test_vit3"),
}
"""Name -> one of open_clip's configs, and timm's smallest image tower of the same class, where the tower is timm's."""
SHRUNK: dict[str, dict[str, Any]] = {
    "convnext_base": {"dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    "eva02_base_patch16_clip_224": {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 64},
    "fastvit_mci0": {"embed_dims": (8, 16, 32, 64), "layers": (1, 1, 1, 1)},
    "vit_pe_core_tiny_patch16_384": {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 64},
    "vit_base_patch16_siglip_224": {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 64},
}
"""The image towers of these configs -> what makes them small; `tiny_NAME` is one in this process alone."""
PREPROCESS: dict[str, dict[str, Any]] = {
    "MobileCLIP2": {"mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bilinear"},
    "PE Core": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"},
    "SigLIP 2": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"},
}
"""As open_clip's tags of these models have it; of the others, OpenAI's."""
WORDS = ["<s>", "<pad>", "</s>", "<unk>", "a", "red", "dog", "ein", "roter", "Hund"]
"""Of XLM-V's tokenizer, with its special ids; SigLIP 2's adds the end alone."""
SIZES = {"width": 16, "heads": 2, "layers": 2}


def _shrink(name: str) -> None:
    def tiny(pretrained: bool = False, **options: Any) -> Any:
        return timm.models.model_entrypoint(name)(**(SHRUNK[name] | options))

    tiny.__name__ = f"tiny_{name}"
    timm.models.register_model(tiny)


for known in SHRUNK:
    _shrink(known)


def small_config(name: str, everywhere: bool = False) -> dict[str, Any]:
    """open_clip's config at small sizes: what it says of pools, masks and activations stays.

    Args:
        everywhere: with an image tower that timm knows in every process, which is larger.
    """
    (known, trunk), vision = TEACHERS[name], {"image_size": 64}
    config = get_model_config(known)
    text = config["text_cfg"] | SIZES
    if trunk and everywhere:
        size = timm.get_pretrained_cfg(trunk).input_size[-1]
        vision = {"image_size": size, "timm_model_name": trunk}
    elif trunk:
        vision |= {"timm_model_name": f"tiny_{config['vision_cfg']['timm_model_name']}"}
    elif isinstance(config["vision_cfg"]["layers"], list):
        vision |= {"width": 16, "layers": [1, 1, 1, 1]}
    else:
        vision |= {"width": 16, "layers": 2, "head_width": 8, "patch_size": 16}
    if "hf_tokenizer_name" in text:
        text |= {"vocab_size": len(WORDS)}
    width = 96 if everywhere and name == "SigLIP 2" else 16  # its image tower has no projection
    towers = {"vision_cfg": config["vision_cfg"] | vision, "text_cfg": text}
    return {**config, "embed_dim": width, "custom_text": True, **towers}


def save_teacher(name: str, folder: Path, everywhere: bool = False) -> Path:
    """A folder in open_clip's format, as its hub repositories are: config, weights, the tokenizer if it has its own."""
    config = small_config(name, everywhere)
    torch.manual_seed(1)
    model = open_clip.CustomTextCLIP(**{key: value for key, value in config.items() if key != "custom_text"})
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    folder.mkdir(parents=True)
    state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors", {"format": "pt"})
    content = {"model_cfg": config, "preprocess_cfg": PREPROCESS.get(name, {})}
    (folder / "open_clip_config.json").write_text(json.dumps(content), encoding="utf-8")
    if "hf_tokenizer_name" in config["text_cfg"]:
        words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
        words.pre_tokenizer = Whitespace()
        single = "$A </s>" if name == "SigLIP 2" else "<s> $A </s>"
        words.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 0), ("</s>", 2)])
        names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
        PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    return folder


def said_of(clip: Clip) -> dict[str, str]:
    """What can be trained with activation checkpointing."""
    towers = {"image": clip.model.visual, "text": clip.model.text}
    cannot = [name for name, tower in towers.items() if cannot_checkpoint(tower)]  # type: ignore[arg-type]
    return {"checkpointing": f"not {', '.join(cannot)}" if cannot else "yes"}

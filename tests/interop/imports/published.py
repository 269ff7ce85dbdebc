"""Small checkpoints in the layout in which others publish theirs, with random weights; and texts and pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from mclip_kit.models.clip import build_clip
from tests import tiny

TEXTS = ["red square left", "Quadrat grün links", "carré bleu haut", "x", "红苹果", "x " * 60]
CARD = "---\nlanguage:\n- en\n- de\n- zh\nlicense: mit\n---\n# A model\n"


def pictures() -> list[Image.Image]:
    """Sizes at which transformers and open_clip cut alike."""
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (h, w, 3), np.uint8)) for h, w in ((16, 16), (30, 20), (20, 26))]


def disturbed(model: Any) -> Any:
    """The model in eval mode, with every weight moved: biases and norms are something."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return model.eval()


def clip(folder: Path, width: int = 16) -> str:
    """A CLIP of tiny towers, as `--clip` names it."""
    torch.manual_seed(0)
    towers = build_clip({**tiny.TEACHER, "embed_dim": width})
    disturbed(towers.model)
    towers.save(folder)
    return f"local-dir:{folder}"


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def save_dense(folder: Path, map_: nn.Linear, activation: str = "torch.nn.modules.linear.Identity") -> None:
    """A Dense of sentence-transformers, as versions before 3 wrote it."""
    sizes = {"in_features": map_.in_features, "out_features": map_.out_features, "bias": map_.bias is not None}
    write_json(folder / "config.json", {**sizes, "activation_function": activation})
    torch.save({f"linear.{name}": tensor for name, tensor in map_.state_dict().items()}, folder / "pytorch_model.bin")

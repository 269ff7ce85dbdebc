"""What decides the vector of a picture, as one hash: an index is searched by a model of the same space alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from mclip_kit.config.model import AS_OPEN_CLIP, Pictures
from mclip_kit.errors import MALFORMED
from mclip_kit.features import hashing
from mclip_kit.layout import CLIP, CLIP_CONFIG, CLIP_WEIGHTS, MODEL_CONFIG

if TYPE_CHECKING:
    from mclip_kit.models.multilingual_clip import MultilingualClip
    from mclip_kit.models.student import Student

IMAGE = "visual."  # how open_clip's names of the image tower's weights begin


def image_space(model: MultilingualClip, image_weights: str = "") -> str:
    """A hash of everything that decides a picture's vector: image tower, CLIP projector, preprocessing.

    Args:
        image_weights: `hashing.hash_weights` of the image tower, if it is known.
    """
    clip = model.clip[0]
    weights = [image_weights or hashing.hash_weights(model.image), hashing.hash_weights(model.clip_projector)]
    return hashing.hash_facts({"weights": weights, "config": model.tower_config("image"), **clip.image_facts()})


def image_space_of(folder: Path, student: Student) -> str:
    """The same of a model folder as `MultilingualClip.save` writes it, from its files: no image tower is built.

    Args:
        student: of the folder.
    Returns:
        Another hash, or none, if the folder is of another form: then `image_space` of the loaded model tells.
    """
    try:
        about = json.loads((folder / CLIP / CLIP_CONFIG).read_text(encoding="utf-8"))
        pictures = json.loads((folder / MODEL_CONFIG).read_text(encoding="utf-8")).get("pictures")
        with safe_open(folder / CLIP / CLIP_WEIGHTS, "pt") as file:
            names = [name for name in file.keys() if name.startswith(IMAGE)]  # noqa: SIM118 (it is no dict)
            state = {name.removeprefix(IMAGE): file.get_tensor(name) for name in names}
        how = {} if pictures is None or Pictures(**pictures) == AS_OPEN_CLIP else {"pictures": pictures}
        config = {key: about["model_cfg"].get(key) for key in ("embed_dim", "quick_gelu", "vision_cfg")}
        facts = {"config": config, "preprocess": about["preprocess_cfg"], **how}
    except (OSError, SafetensorError, *MALFORMED):
        return ""
    weights = [hashing.hash_state(state), hashing.hash_weights(student.clip_projector)]
    return hashing.hash_facts({"weights": weights, **facts})

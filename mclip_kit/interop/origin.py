"""Which CLIP an image tower came from, and whether the one that a model folder has is still that one, bit for bit."""

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from mclip_kit import layout
from mclip_kit.interop.facts import Facts, is_new
from mclip_kit.models.clip import Clip, Origin

TOWER = "visual."
"""Of the names of an image tower's weights, in open_clip's files."""


def mark(clip: Clip, name: str) -> None:
    """Keep a CLIP's name, a digest of its image tower and how it reads pictures, before anything changes them.

    Args:
        clip: as it was loaded.
        name: of its weights, as a card's `bases` has it; of new weights nothing is kept.
    """
    if not is_new(name):
        clip.origin = Origin(name, _digest(clip.model.visual.state_dict().items()), clip.pictures)  # type: ignore[union-attr]


def images(clip: Clip, folder: Path) -> Facts:
    """`images` of a card: the CLIP that an image tower came from, how that one reads pictures, and whether the weights
    in a model folder are its own.

    Args:
        clip: the model's.
        folder: where the model was saved; its file is read.
    Returns:
        `of`, `pictures` and `same`; nothing if the CLIP was not marked.
    """
    if clip.origin is None:
        return {}
    with safe_open(folder / layout.CLIP / layout.CLIP_WEIGHTS, "pt") as file:
        names = [name for name in file.keys() if name.startswith(TOWER)]  # noqa: SIM118  it is no dict
        saved = _digest((name.removeprefix(TOWER), file.get_tensor(name)) for name in names)
    name, before, pictures = clip.origin
    return {"images": {"of": name, "pictures": pictures.model_dump(), "same": saved == before}}


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of tensors, with names, types and shapes; their order does not count."""
    each = []
    for name, tensor in tensors:
        digest = blake2b(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode(), digest_size=16)
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        each.append(digest.digest())
    return blake2b(b"".join(sorted(each)), digest_size=16).hexdigest()

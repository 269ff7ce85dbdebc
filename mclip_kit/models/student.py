"""The student's side of a model: text encoder and projector, which can be loaded without the CLIP."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mclip_kit import layout
from mclip_kit.config.model import TextCleaning
from mclip_kit.errors import MALFORMED, CheckpointError
from mclip_kit.models.encoding import CLEANERS, Texts, as_texts, embed_by_length, texts_of_a_batch
from mclip_kit.models.freezing import evaluating
from mclip_kit.models.model_folder import Dtype, Settings, as_device, as_dtype, load_projectors, read_config
from mclip_kit.models.projectors import Projector, build_projector
from mclip_kit.models.text_encoder import Encoder, pretrained_encoder
from mclip_kit.storage import fetch, place

STUDENT_FILES = (f"{layout.ENCODER}/", layout.PROJECTOR, f"{layout.CLIP}/{layout.CLIP_CONFIG}")
"""How the names of the files begin that `load_student` reads."""


class Student(nn.Module):
    """What encodes a student's texts. `load_student` loads one; a `MultilingualClip` is one that has a CLIP, too.

    Shapes: N texts, D width of the shared space, H encoder width, E the CLIP's width, B batch, T tokens.

    Attributes:
        encoder, projector, clip_projector: the towers, named as in recipes.
        settings: arguments of the projectors, as saved in config.json.
        text_cleaning: a key of `CLEANERS`.
        trained_languages: language codes that the student was trained on.
        dims: widths below D at which embeddings may be cut, as the student was trained (Matryoshka).
        made_from: the encoder that the student started from.
        sources: tower name -> name of its weights in the recipe.
        width: D.
    """

    encoder: Encoder
    projector: Projector
    clip_projector: nn.Module
    settings: dict[str, Any]
    text_cleaning: TextCleaning
    trained_languages: list[str]
    dims: list[int]
    made_from: str
    sources: dict[str, str]
    width: int

    def add_student(
        self, encoder: Encoder, projector: dict[str, Any], clip_projector: str, text_cleaning: TextCleaning, width: int
    ) -> None:
        """Register encoder and projectors; `width`: E, other arguments as of `MultilingualClip`."""
        self.encoder = encoder
        self.settings = {"projector": projector, "clip_projector": clip_projector}
        self.text_cleaning = text_cleaning
        self.trained_languages, self.dims, self.made_from, self.sources = [], [], "", {}
        linear = clip_projector == "linear"
        self.width = encoder.width if linear else width
        self.projector = build_projector(config=encoder.config, width=self.width, **projector)
        self.clip_projector = nn.Linear(width, self.width, bias=False) if linear else nn.Identity()

    def add_weights(self, folder: Path, settings: Settings) -> None:
        """Load the projectors of a model folder, and what its config.json says about the student."""
        self.trained_languages, self.made_from, self.dims = (
            settings.trained_languages,
            settings.made_from,
            settings.dims,
        )
        load_projectors(self, folder / layout.PROJECTOR)

    def tower_config(self, tower: str) -> dict[str, Any]:
        """The config of `encoder`, as JSON values: part of the key of cached features."""
        return {"encoder": self.encoder.config_for_hash}[tower]()

    def student_tokens(self, texts: Sequence[str], max_tokens: int | None = None) -> list[np.ndarray]:
        """Ids of each text, cleaned, for the encoder, int32 (T,); texts beyond its positions lose their last tokens."""
        room = min(max_tokens or self.encoder.positions, self.encoder.positions)
        clean = CLEANERS[self.text_cleaning]
        return self.encoder.tokenizer.encode([clean(text) for text in texts] if clean else texts, room)

    def encode_text(self, texts: Texts, batch_size: int | None = None, dims: int | None = None) -> Tensor:
        """Student embeddings of texts in any language.

        >>> text_ND = model.encode_text(["red apple", "pomme rouge", "红苹果"])
        >>> len(text_ND)
        3

        Args:
            texts: one text or a sequence of N texts; a text beyond the encoder's positions loses its last tokens.
            batch_size: texts per batch; texts of similar length share a batch. None: 32 on the CPU, where larger
                batches are slower (benchmarks/embed.py), else 256.
            dims: cut embeddings to so many numbers, such as one of `model.dims`, which were trained; None: D.
        Returns:
            (N, D), L2-normalised, float32 on the CPU, in the order of `texts`.
        Raises:
            TypeError: an item is not a string.
            ValueError: dims is not between 1 and D.
        """
        tokens = self.student_tokens(as_texts(texts))
        lengths = [len(ids) for ids in tokens]
        size = texts_of_a_batch(self.device) if batch_size is None else batch_size
        with evaluating(self):
            return embed_by_length(tokens, lengths, self.embed_tokens, self.width, size, dims)

    def embed_tokens(self, tokens: Sequence[np.ndarray]) -> Tensor:
        """Student embeddings (B, D) of a batch of texts by their `student_tokens`; not normalised, on the device."""
        ids_BT, mask_BT = self.encoder.pad(tokens)
        embedding_BD: Tensor = self.projector(self.encoder(ids_BT, mask_BT), mask_BT)
        return embedding_BD

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device


def opened(
    path: str | Path, device: str | torch.device, dtype: Dtype | None
) -> tuple[Path, torch.device, torch.dtype | None]:
    """The folder of a model on this machine, its device and the type of its weights; errors as of `mclip_kit.load`."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path: give the path of a model folder, not {type(path).__name__}")
    numbers, where = as_dtype(dtype), as_device(device)
    return fetch(place(path)), where, numbers


def encoder_of(folder: Path) -> Encoder:
    """The encoder of a model folder."""
    path = folder / layout.ENCODER
    if not path.is_dir():  # transformers would ask the hub for it
        raise CheckpointError(f"{path}: missing; {folder} is not a complete model folder")
    return pretrained_encoder(str(path))


@contextmanager
def building(folder: Path) -> Iterator[None]:
    """CheckpointError if the block cannot build the projectors that config.json of a model folder describes."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / layout.MODEL_CONFIG}: its projector cannot be built ({error})") from None


def load_student(
    path: str | Path, device: str | torch.device = "auto", dtype: Dtype | None = None, verify: bool = True
) -> Student:
    """Load the student of a model folder without its CLIP, ready to encode texts, as `mclip_kit.load` does.

    >>> from mclip_kit.models.student import load_student
    >>> load_student("models/mine").encode_text("red apple").dtype
    torch.float32

    Args:
        path, device, dtype, verify: as of `mclip_kit.load`; the files that are read are compared with their hashes.
    Raises:
        CheckpointError, ValueError, TypeError: as `mclip_kit.load`.
    """
    folder, where, numbers = opened(path, device, dtype)
    settings = read_config(folder, folder / layout.MODEL_CONFIG, verify, STUDENT_FILES)
    encoder = encoder_of(folder)
    described = folder / layout.CLIP / layout.CLIP_CONFIG
    try:
        width = int(json.loads(described.read_text(encoding="utf-8"))["model_cfg"]["embed_dim"])
    except (OSError, *MALFORMED):
        raise CheckpointError(f"{described}: missing or damaged; {folder} is not a complete model folder") from None
    student = Student()
    with building(folder):
        student.add_student(encoder, settings.projector, settings.clip_projector, settings.text_cleaning, width)
    student.add_weights(folder, settings)
    return student.to(where, numbers).eval()

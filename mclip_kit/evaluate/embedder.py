"""Embeddings of a model as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from mclip_kit.data.captions import Captions
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.extract import FrozenTowers
from mclip_kit.features.filling import NoRoom
from mclip_kit.features.hashing import hash_towers
from mclip_kit.features.item_format import NonfiniteOutput
from mclip_kit.features.students import student_embeddings
from mclip_kit.models.device import autocast
from mclip_kit.models.freezing import evaluating

if TYPE_CHECKING:
    from mclip_kit.models.multilingual_clip import MultilingualClip

BATCH = 256


class Embedder:
    """L2-normalised embeddings of pictures and texts.

    Args:
        model: the model.
        cache: features of frozen towers; those that it has are read, not computed.
        dims: cut embeddings to so many numbers; None: whole ones.
    """

    def __init__(self, model: MultilingualClip, cache: FeatureCache, dims: int | None = None) -> None:
        self._model, self.cache, self._dims = model, cache, dims
        self._frozen = FrozenTowers(model, cache)
        self.log = cache.log

    def hash_towers(self) -> None:
        """Hash the weights of all towers whose features are kept at once, each in a thread, rather than when needed."""
        kept = [tower for tower in ("encoder", "image", "teacher_text") if self.cache.is_persistent(tower)]
        hash_towers(self._model, kept, self.cache.weights)

    def log_nonfinite(self, tower: str, embedding_ND: np.ndarray) -> None:
        """Log how many embeddings of a tower are non-finite, if any."""
        count = int((~np.isfinite(embedding_ND).all(1)).sum())
        if count:
            self.log(
                f"{tower}: {count} of {len(embedding_ND)} embeddings are non-finite (NaN or inf); they count as misses"
            )

    def images(
        self, captions: Captions, images: np.ndarray, keys_N2: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings of pictures, float32 (N, D), and which of them could not be read, bool (N,).

        Args:
            images: rows of the picture table.
            keys_N2: their `FrozenTowers.picture_keys`, if they are known.
        """
        features = self._frozen.images(captions, images, keys_N2)
        return self._project("clip_projector", features.take()), features.unreadable()

    def teacher(self, texts: list[str]) -> np.ndarray:
        """Text embeddings of the teacher, float32 (N, D)."""
        return self._project("clip_projector", self._frozen.teacher_texts(texts).take())

    def student(self, texts: list[str]) -> np.ndarray:
        """Text embeddings of the student, float32 (N, D)."""
        model = self._model
        tokens = model.student_tokens(texts)
        if model.projector.blocks is None:
            return self._project("projector.head", self._frozen.pooled(tokens).take())
        if self.cache.keeps_students:
            return self.whole_student(texts)
        if not (self._frozen.cache.is_persistent("encoder") and self._frozen.cache.tokens):
            return model.encode_text(texts, dims=self._dims).numpy()
        try:
            states = self._frozen.token_states(tokens)
        except NoRoom:
            return model.encode_text(texts, dims=self._dims).numpy()
        parts = np.array_split(np.arange(len(texts)), range(BATCH, len(texts), BATCH))
        return np.concatenate([self._project("projector", *states.padded(part)) for part in parts])

    def whole_student(self, texts: Sequence[str]) -> np.ndarray:
        """The same by encoder and projector together, as `encode_text`; kept, if the cache keeps students."""
        model = self._model
        try:
            return self._cut(student_embeddings(self._frozen, model.student_tokens(texts)))
        except NonfiniteOutput:
            with autocast(model.device, self.cache.precision):
                return model.encode_text(texts, dims=self._dims).numpy()

    def _project(self, name: str, *inputs: Tensor) -> np.ndarray:
        module, device = self._model.get_submodule(name), self._model.device
        with evaluating(module):
            return self._cut(module(*(tensor.to(device) for tensor in inputs)))

    def _cut(self, whole_ND: Tensor) -> np.ndarray:
        return np.asarray(F.normalize(whole_ND[:, : self._dims].float(), dim=-1).cpu().numpy())


Part = dict[str, tuple[list[Any], np.ndarray, np.ndarray]]
"""Tower -> its inputs (texts, or numbers of pictures), their embeddings (N, D), and which are unreadable, bool (N,)."""


def part_of(embed: Embedder, captions: Captions, images: np.ndarray, texts: Mapping[str, Sequence[str]]) -> Part:
    """The embeddings of this process's share of some inputs, see `FeatureCache.rank`.

    Args:
        images: rows of the picture table.
        texts: `student` or `teacher` -> what its text tower encodes; the same text is encoded once.
    """
    own = slice(embed.cache.rank, None, embed.cache.world_size)
    part: Part = {}
    if len(images[own]):
        part["image"] = (images[own].tolist(), *embed.images(captions, images[own]))
    for tower, given in texts.items():
        distinct = list(dict.fromkeys(given))[own]
        if distinct:
            embedding_ND = embed.teacher(distinct) if tower == "teacher" else embed.student(distinct)
            part[tower] = distinct, embedding_ND, np.zeros(len(distinct), bool)
    return part


class GatheredEmbedder(Embedder):
    """Looks up what all processes have embedded.

    Args:
        parts: of all processes, see `part_of`.
    """

    def __init__(self, model: MultilingualClip, cache: FeatureCache, parts: Sequence[Part]) -> None:
        super().__init__(model, cache)
        self._whole: dict[str, tuple[dict[Any, int], np.ndarray, np.ndarray]] = {}
        for tower in {tower for part in parts for tower in part}:
            inputs, embeddings, unreadable = zip(*(part[tower] for part in parts if tower in part), strict=True)
            rows = {given: row for row, given in enumerate(chain(*inputs))}
            self._whole[tower] = rows, np.concatenate(embeddings), np.concatenate(unreadable)

    def _look_up(self, tower: str, inputs: Iterable[Any]) -> tuple[np.ndarray, np.ndarray]:
        rows, embedding_ND, unreadable_N = self._whole[tower]
        places = np.array([rows[given] for given in inputs], np.int64)
        return embedding_ND[places], unreadable_N[places]

    def images(
        self, captions: Captions, images: np.ndarray, keys_N2: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Embedder.images`."""
        return self._look_up("image", images.tolist())

    def teacher(self, texts: list[str]) -> np.ndarray:
        """See `Embedder.teacher`."""
        return self._look_up("teacher", texts)[0]

    def student(self, texts: list[str]) -> np.ndarray:
        """See `Embedder.student`."""
        return self._look_up("student", texts)[0]

"""Embeddings of a model as arrays."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mclip_kit.data.captions import Captions
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.extract import FrozenTowers
from mclip_kit.features.filling import NoRoom
from mclip_kit.models.freezing import evaluating
from mclip_kit.models.multilingual_clip import MultilingualClip

BATCH = 256


class Embedder:
    """L2-normalised embeddings of pictures and texts.

    Args:
        model: the model.
        cache: features of frozen towers; those that it has are read, not computed.
    """

    def __init__(self, model: MultilingualClip, cache: FeatureCache) -> None:
        self._model, self._cache = model, cache
        self._frozen = FrozenTowers(model, cache)
        self.log = cache.log

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
        if not (self._frozen.cache.is_persistent("encoder") and self._frozen.cache.tokens):
            return model.encode_text(texts).numpy()
        try:
            states = self._frozen.token_states(tokens)
        except NoRoom:
            return model.encode_text(texts).numpy()
        parts = np.array_split(np.arange(len(texts)), range(BATCH, len(texts), BATCH))
        return np.concatenate([self._project("projector", *states.padded(part)) for part in parts])

    def _project(self, name: str, *inputs: Tensor) -> np.ndarray:
        module, device = self._model.get_submodule(name), self._model.device
        with evaluating(module):
            embeddings = F.normalize(module(*(tensor.to(device) for tensor in inputs)).float(), dim=-1)
        return np.asarray(embeddings.cpu().numpy())


def auto_device() -> torch.device:
    """The GPU if CUDA is available, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """A device as results and reports name it: `cpu`, or `cuda (NVIDIA H100)`."""
    return f"{device.type} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type

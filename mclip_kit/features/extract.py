"""Outputs of frozen towers, computed once and kept in the cache."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mclip_kit.data.captions import Captions
from mclip_kit.data.transforms import read_pixels
from mclip_kit.features import hashing
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.job import ExtractionJob
from mclip_kit.features.table import Table
from mclip_kit.models.freezing import evaluating
from mclip_kit.models.multilingual_clip import MultilingualClip

TEXTS, TOKENS, PICTURES = 256, 4096, 64  # of a batch that fills a table: texts' characters / 16, tokens, pictures


@dataclass(frozen=True)
class Features:
    """Features of some inputs, on disk.

    Attributes:
        table: where they are.
        rows: the table's row of each input, int64 (N,).
    """

    table: Table
    rows: np.ndarray

    def take(self, inputs: np.ndarray | slice = slice(None)) -> Tensor:
        """Float32 (len(inputs), width); of token states (tokens, width), one input's after the other."""
        return self.table.take(self.rows[inputs])

    def padded(self, inputs: np.ndarray) -> tuple[Tensor, Tensor]:
        """Token states (B, T, width), zeros behind each input's last, and mask (B, T)."""
        rows = self.rows[inputs]
        lengths_B = torch.from_numpy(self.table.lengths(rows))
        mask_BT = torch.arange(int(lengths_B.max())) < lengths_B[:, None]
        states_BTH = torch.zeros(*mask_BT.shape, self.table.layout.width)
        states_BTH[mask_BT] = self.table.take(rows)
        return states_BTH, mask_BT.long()

    def unreadable(self) -> np.ndarray:
        """Which inputs have no features, bool (N,)."""
        return self.table.unreadable(self.rows)


class FrozenTowers:
    """Features of a model's frozen towers, through a store."""

    def __init__(self, model: MultilingualClip, store: FeatureCache) -> None:
        self.model, self.store = model, store

    def images(self, captions: Captions, images: np.ndarray) -> Features:
        """CLIP's image embeddings (N, E), before the clip projector."""
        clip = self.model.clip[0]
        table = self._table("image", "image", clip.width, lambda: {"preprocess": clip.preprocess})
        work = ExtractionJob(
            load=lambda part: read_pixels(captions, images[list(part)], clip.transform, clip.preprocess),
            run=lambda pixels_BCHW: self._eval("image", pixels_BCHW),
            batch_items=PICTURES,
            workers=self.store.workers if captions.pixels is None else 0,
        )
        return self._fill(table, self._image_keys(captions, images), work)

    def _image_keys(self, captions: Captions, images: np.ndarray) -> np.ndarray:
        distinct, inverse = np.unique(images, return_inverse=True)
        if captions.pixels is not None:
            known_N2 = hashing.of_bytes(captions.pixels[image].tobytes() for image in distinct)
        else:
            known_N2 = hashing.of_files([captions.files[image] for image in distinct], self.store.files)
        return known_N2[inverse]

    def teacher_texts(self, texts: Sequence[str]) -> Features:
        """The teacher's text embeddings (N, E), before the clip projector."""
        clip = self.model.clip[0]
        table = self._table("teacher_text", "teacher", clip.width, lambda: {"tokenizer": clip.tokenizer_facts()})
        work = ExtractionJob(
            load=lambda part: (self.model.teacher_tokens([hashing.plain(texts[i]) for i in part]), []),
            run=lambda ids_BT: self._eval("teacher_text", ids_BT),
            sizes_N=np.array([1 + len(text) // 16 for text in texts]),
            batch_items=TEXTS,
        )
        return self._fill(table, hashing.of_texts(hashing.plain(text) for text in texts), work)

    def pooled(self, tokens: Sequence[np.ndarray], lengths_N: np.ndarray | None = None) -> Features:
        """The encoder's pooled states (N, H)."""
        projector = self.model.projector

        def run(inputs: tuple[Tensor, Tensor]) -> Tensor:
            return projector.pool(self._eval("encoder", *inputs), inputs[1].to(self.model.device))

        table = self._table("encoder", f"pooled_{projector.pooling}", self.model.encoder.width, dict)
        return self._fill(table, hashing.of_tokens(tokens), self._encoding(tokens, lengths_N, run))

    def token_states(self, tokens: Sequence[np.ndarray], lengths_N: np.ndarray | None = None) -> Features:
        """The encoder's states of every token (tokens, H)."""

        def run(inputs: tuple[Tensor, Tensor]) -> Tensor:
            states_BTH = self._eval("encoder", *inputs)
            return states_BTH[inputs[1].bool().to(states_BTH.device)]

        table = self._table("encoder", "tokens", self.model.encoder.width, dict)
        return self._fill(table, hashing.of_tokens(tokens), self._encoding(tokens, lengths_N, run, ragged=True))

    def _encoding(
        self,
        tokens: Sequence[np.ndarray],
        lengths_N: np.ndarray | None,
        run: Callable[[Any], Tensor],
        ragged: bool = False,
    ) -> ExtractionJob:
        return ExtractionJob(
            load=lambda part: (self.model.encoder.pad([tokens[i] for i in part]), []),
            run=run,
            sizes_N=np.array([len(ids) for ids in tokens]) if lengths_N is None else lengths_N,
            ragged=ragged,
            batch_items=TOKENS,
        )

    def _table(self, tower: str, kind: str, width: int, facts: Callable[[], dict[str, Any]]) -> Table:
        def everything() -> dict[str, Any]:
            weights = hashing.of_weights(getattr(self.model, tower))
            precision = str(self.store.precision).removeprefix("torch.")
            known = {"weights": weights, "config": self.model.tower_config(tower), "precision": precision}
            return {"named": self.model.sources.get(tower, ""), **known, **facts()}

        return self.store.table(tower, kind, width, everything)

    def _fill(self, table: Table, keys_N2: np.ndarray, work: ExtractionJob) -> Features:
        return Features(table, table.fill(keys_N2, work, self.store.share, self.store.shares))

    def _eval(self, tower: str, *inputs: Tensor) -> Tensor:
        module, device = getattr(self.model, tower), self.model.device
        precision = self.store.precision
        lower = precision != torch.float32
        with evaluating(module), torch.autocast(device.type, precision if lower else None, enabled=lower):
            outputs: Tensor = module(*(tensor.to(device) for tensor in inputs))
        return outputs

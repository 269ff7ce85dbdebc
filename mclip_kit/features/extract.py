"""Features: outputs of frozen towers, computed once and kept in the feature cache."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mclip_kit.data.captions import Captions
from mclip_kit.data.content_keys import hash_bytes, hash_texts, hash_tokens
from mclip_kit.data.content_keys import normalize_spaces as clean
from mclip_kit.data.transforms import read_pixels
from mclip_kit.errors import DataError, DiskError
from mclip_kit.features import hashing
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.file_hashes import hash_files, read_hashes
from mclip_kit.features.filling import NoRoom
from mclip_kit.features.item_format import NonfiniteOutput
from mclip_kit.features.job import ExtractionJob
from mclip_kit.features.places import find_once
from mclip_kit.features.shards import OFFSETS, SUMS
from mclip_kit.features.table import Table
from mclip_kit.models.device import autocast
from mclip_kit.models.encoding import over_templates
from mclip_kit.models.finite import first_nonfinite
from mclip_kit.models.freezing import evaluating
from mclip_kit.models.projectors import Pool, pool
from mclip_kit.urls import is_copy

if TYPE_CHECKING:
    from mclip_kit.models.multilingual_clip import MultilingualClip

TEXTS = 256  # of a batch of teacher texts: texts + characters / 16
TOKENS = 4096  # of a batch of the encoder
PICTURES, CPU_PICTURES = 64, 32  # of a batch; smaller ones stay in a CPU's cache (benchmarks/embed_images.py)


@dataclass(frozen=True)
class Features:
    """Features of some inputs, on disk.

    Attributes:
        table: the table that has them.
        rows: the table's row of each input, int64 (N,).
    """

    table: Table
    rows: np.ndarray

    def take(self, inputs: np.ndarray | slice = slice(None)) -> Tensor:
        """Features of some inputs, float32 (len(inputs), width); token states (tokens, width), input after input."""
        return self.table.take(self.rows[inputs])

    def padded(self, inputs: np.ndarray) -> tuple[Tensor, Tensor]:
        """Token states, float32 (B, T, width), with zeros after each input's last token, and mask, int64 (B, T)."""
        lengths, states_NH = self.table.take_with_lengths(self.rows[inputs])
        lengths_B = torch.from_numpy(lengths)
        mask_BT = torch.arange(int(lengths_B.max())) < lengths_B[:, None]
        states_BTH = torch.zeros(*mask_BT.shape, self.table.item_format.width)
        states_BTH[mask_BT] = states_NH
        return states_BTH, mask_BT.long()

    def files(self, inputs: np.ndarray) -> list[Path]:
        """The files that `take` opens; none if the features are not in object storage."""
        if not is_copy(self.table.folder):
            return []
        names = (*self.table.item_format.files, SUMS, OFFSETS)
        return [folder / name for folder in self.table.folders(self.rows[inputs]) for name in names]

    def unreadable(self) -> np.ndarray:
        """Which inputs have no features, bool (N,)."""
        return self.table.unreadable(self.rows)


class FrozenTowers:
    """Features of a model's frozen towers, through a feature cache."""

    def __init__(self, model: "MultilingualClip", cache: FeatureCache) -> None:
        self.model, self.cache = model, cache

    def images(
        self, captions: Captions, images: np.ndarray, keys_N2: np.ndarray | None = None, kept: Path | None = None
    ) -> Features:
        """CLIP's image embeddings (N, E), before the CLIP projector.

        Args:
            captions: where the pictures are.
            images: numbers of pictures in `captions`, int (N,).
            keys_N2: their `picture_keys`, if they are known.
            kept: a folder for the places of these features, which other processes and runs then need not look for.
        """
        clip = self.model.clip[0]
        table = self._table("image", "image", clip.width, clip.image_facts)
        job = ExtractionJob(
            load=lambda part: read_pixels(captions, images[list(part)], clip.transform, clip.preprocess),
            run=lambda pixels_BCHW: self._eval("image", pixels_BCHW),
            batch_items=CPU_PICTURES if self.model.device.type == "cpu" else PICTURES,
            workers=self.cache.workers if captions.pixels is None else 0,
        )

        def keys() -> np.ndarray:
            return self.picture_keys(captions, images) if keys_N2 is None else keys_N2

        if not captions.all_keys_known:  # pictures that were not found may be put there later
            return self._fill("image", table, keys, lambda: job, None)
        return self._fill("image", table, keys, lambda: job, kept, lambda: np.asarray(captions.keys), images)

    def picture_keys(self, captions: Captions, images: np.ndarray) -> np.ndarray:
        """Hashes of the contents of pictures, uint64 (N, 2); arguments as for `images`.

        `prepare` knows those of the pictures that it has found; the others are hashed now.
        """
        wanted_I = np.zeros(int(images.max(initial=-1)) + 1, bool)
        wanted_I[images] = True
        distinct, keys_I2 = np.flatnonzero(wanted_I), np.empty((len(wanted_I), 2), "<u8")
        if captions.keys is not None:
            keys_I2[distinct] = captions.keys[distinct]
            distinct = distinct[~keys_I2[distinct].any(1)]
        if captions.pixels is not None:
            pixels = captions.pixels
            keys_I2[distinct] = hash_bytes(pixels[image].tobytes() for image in distinct)
        elif len(distinct):
            keys_I2[distinct] = self._file_keys([captions.files[int(image)] for image in distinct])
        return keys_I2[images]

    def _file_keys(self, files: list[Path]) -> np.ndarray:
        cache = self.cache
        try:
            return hash_files(files, cache.file_hashes, cache.rank, cache.world_size)
        except (DiskError, NoRoom) as error:
            cache.log(f"{error}; hashes of picture files are not kept")
            return read_hashes(files)

    def teacher_texts(
        self,
        texts: Sequence[str],
        keys_N2: np.ndarray | None = None,
        kept: Path | None = None,
        templates: Sequence[str] = (),
    ) -> Features:
        """The teacher's embeddings of N texts, (N, E), before the CLIP projector.

        Args:
            keys_N2: keys of the texts with single spaces, if they are known.
            kept: as of `images`.
            templates: patterns with {}; a text's embedding is then that of `over_templates`.
        """
        clip = self.model.clip[0]
        own = {"templates": list(templates)} if templates else {}
        variant = hashing.hash_facts(own) if own else ""
        table = self._table(
            "teacher_text", "teacher", clip.width, lambda: {"tokenizer": clip.tokenizer_facts(), **own}, variant
        )

        def job() -> ExtractionJob:
            return ExtractionJob(
                load=lambda part: (self.model.teacher_tokens([clean(texts[i]) for i in part], templates), []),
                run=partial(self._eval, "teacher_text"),
                sizes_N=np.fromiter((1 + len(text) // 16 for text in texts), np.int32, len(texts)),
                batch_items=max(1, TEXTS // max(1, len(templates))),
            )

        def keys() -> np.ndarray:
            return hash_texts(map(clean, texts)) if keys_N2 is None else keys_N2

        return self._fill("teacher_text", table, keys, job, kept)

    def pooled(
        self,
        tokens: Sequence[np.ndarray],
        lengths_N: np.ndarray | None = None,
        keys_N2: np.ndarray | None = None,
        kept: Path | None = None,
        pooling: Pool | None = None,
    ) -> Features:
        """The encoder's states, pooled as the projector does, or as `pooling` says (N, H).

        Args:
            tokens: token ids of each text.
            lengths_N: their lengths, int (N,), if they are known.
            keys_N2: their keys, if they are known.
            kept: as of `images`.
        """
        how = pooling or self.model.projector.pooling

        def run(inputs: tuple[Tensor, Tensor]) -> Tensor:
            return pool(self._eval("encoder", *inputs), inputs[1].to(self.model.device), how)

        return self._encoded(f"pooled_{how}", run, tokens, lengths_N, keys_N2, kept)

    def token_states(
        self,
        tokens: Sequence[np.ndarray],
        lengths_N: np.ndarray | None = None,
        keys_N2: np.ndarray | None = None,
        kept: Path | None = None,
    ) -> Features:
        """The encoder's states of every token (tokens, H); arguments as for `pooled`."""

        def run(inputs: tuple[Tensor, Tensor]) -> Tensor:
            states_BTH = self._eval("encoder", *inputs)
            return states_BTH[inputs[1].bool().to(states_BTH.device)]

        return self._encoded("tokens", run, tokens, lengths_N, keys_N2, kept, ragged=True)

    def _encoded(
        self,
        kind: str,
        run: Callable[[Any], Tensor],
        tokens: Sequence[np.ndarray],
        lengths_N: np.ndarray | None,
        keys_N2: np.ndarray | None,
        kept: Path | None,
        ragged: bool = False,
    ) -> Features:
        """Features that `run` computes with the encoder; the other arguments as for `pooled`."""

        def job() -> ExtractionJob:
            return ExtractionJob(
                load=lambda part: (self.model.encoder.pad([tokens[i] for i in part]), []),
                run=run,
                sizes_N=np.fromiter(map(len, tokens), np.int32, len(tokens)) if lengths_N is None else lengths_N,
                ragged=ragged,
                batch_items=TOKENS,
            )

        def keys() -> np.ndarray:
            return hash_tokens(tokens) if keys_N2 is None else keys_N2

        table = self._table("encoder", kind, self.model.encoder.width, dict)
        return self._fill("encoder", table, keys, job, kept)

    def weights(self, tower: str) -> str:
        """A hash of a tower's weights, computed once until the cache drops the tower."""
        hashing.hash_towers(self.model, [tower], self.cache.weights)
        return self.cache.weights[tower]

    def _table(
        self, tower: str, kind: str, width: int, facts: Callable[[], dict[str, Any]], variant: str = ""
    ) -> Table:
        def all_facts() -> dict[str, Any]:
            known = {"weights": self.weights(tower), "config": self.model.tower_config(tower)}
            return {"named": self.model.sources.get(tower, ""), **known, **facts(), **self.cache.facts}

        return self.cache.table(tower, kind, width, all_facts, variant=variant)

    def _fill(
        self,
        tower: str,
        table: Table,
        keys: Callable[[], np.ndarray],
        job: Callable[[], ExtractionJob],
        kept: Path | None,
        distinct: Callable[[], np.ndarray] | None = None,
        key_of_N: np.ndarray | None = None,
    ) -> Features:
        """Features from the table, which is filled first if it lacks some.

        Args:
            keys: of the inputs, uint64 (N, 2).
            kept, key_of_N: see `find_once`, which gets the keys from `distinct` instead, if it is given.
        """
        try:
            row_N = None
            if kept and self.cache.is_persistent(tower):
                row_N = find_once(table, distinct or keys, kept, key_of_N)
            if row_N is None:
                row_N = table.fill(keys(), job(), self.cache.rank, self.cache.world_size)
            return Features(table, row_N)
        except NonfiniteOutput as error:
            raise DataError(
                f"{tower} {self.model.sources.get(tower, '')}".strip() + f": {self._why(tower, error)}"
            ) from None

    def _why(self, tower: str, error: NonfiniteOutput) -> str:
        """What to say of an output that is non-finite, or too large to be stored."""
        if "finite" not in str(error):
            return str(error)
        name = first_nonfinite(getattr(self.model, tower))
        if name:
            return (
                f"{name.removeprefix('model.')} is not finite (NaN or inf), so its outputs are not; use other weights"
            )
        lower = self.cache.precision != torch.float32
        return f"{error}, though all of its weights are; " + (
            "set precision=fp32" if lower else "an input of it is damaged, or its weights are much too large"
        )

    def _eval(self, tower: str, *inputs: Tensor) -> Tensor:
        module, device = getattr(self.model, tower), self.model.device
        with evaluating(module), autocast(device, self.cache.precision):
            compute = partial(over_templates, module) if tower == "teacher_text" else module
            outputs: Tensor = compute(*(tensor.to(device) for tensor in inputs))
        return outputs

"""Batches of a triangle's stage: the one place that knows which vertices are read from the cache and which computed."""

import random
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mclip_kit.config.recipe import Cache
from mclip_kit.config.stages import TriangleStage
from mclip_kit.data.batching import Plan, pad
from mclip_kit.data.captions import Captions
from mclip_kit.data.images import container
from mclip_kit.data.transforms import augment, read_pixels
from mclip_kit.data.triangle_rows import TriangleRows
from mclip_kit.errors import DataError
from mclip_kit.features.extract import Features, FrozenTowers
from mclip_kit.features.filling import NoRoom
from mclip_kit.tasks.centroids import Centroids
from mclip_kit.tasks.stage_batches import StageBatches
from mclip_kit.tasks.triangle_loss import TriangleBatch
from mclip_kit.urls import is_copy


class TriangleBatches(StageBatches):
    """Batches of some rows.

    Rows whose picture cannot be read are left out of `rows`. Where pictures are read in every step, such a row shows
    another picture of its batch instead.

    Args:
        towers: give features of the frozen towers.
        rows: of the stage.
        stage: says which vertices are needed, and how texts and pictures are changed in training.
        live: towers that compute in every step, because they are trained or their input changes.
        cache: which features are kept; auto: those that the disk has room for.
        captions: the pictures of the rows.
        report: takes the path of each unreadable picture, once.
        shares: of the corpora of the rows, see `Plan`.
        seed: of the order of the rows.
    Raises:
        DataError: too many pictures are unreadable.
        NoRoom: the disk has no room for features that are to be kept.

    Attributes:
        centroids: of the rows, for edges of centroid; the task gives them before the first step.
    """

    centroids: Centroids | None = None

    def __init__(
        self,
        towers: FrozenTowers,
        rows: TriangleRows,
        stage: TriangleStage,
        live: Collection[str],
        cache: Cache,
        captions: Captions | None = None,
        report: Callable[[Path], None] = lambda path: None,
        shares: Sequence[float] | None = None,
        seed: int = 1,
    ) -> None:
        self.rows, self._stage, self._live, self._cache = rows, stage, frozenset(live), cache
        self._towers, self._captions, self._report = towers, captions, report
        self._unreadable: set[int] = set()
        self._read: dict[str, Features] = {}
        self._marks_duplicates = any(e.duplicates == "mask" for e in stage.edges.values())
        self._read_features()
        self.plan = Plan(
            self.rows.languages_N,
            self.rows.lengths_N,
            stage.batch_size,
            stage.language_temperature,
            stage.monolingual,
            seed,
            self.rows.sources_N,
            shares,
            kept=self.rows.folder,
            window=stage.shuffle_window,
        )

    @property
    def steps(self) -> int:  # type: ignore[override]
        """Steps of the whole stage."""
        return self.steps_per_epoch * self._stage.epochs

    def _read_features(self) -> None:
        towers, captions = self._towers, self._captions
        if self._reads("image", "image"):
            assert captions is not None
            self._keep("image", lambda: towers.images(captions, self.rows.images_N, kept=self.rows.folder))
        if "image" in self._read:
            self._leave_out_unreadable()
        rows = self.rows
        if self._reads("teacher_text", "teacher_text"):
            given = rows.teacher_texts, rows.teacher_keys_N2, rows.folder, self._stage.templates
            self._keep("teacher_text", lambda: towers.teacher_texts(*given))
        if self._reads("student_text", "encoder"):
            texts = rows.tokens, rows.lengths_N, rows.token_keys_N2, rows.folder
            if towers.model.projector.blocks is None:
                self._keep("pooled", lambda: towers.pooled(*texts))
            elif self._cache.features in ("tokens", "auto"):
                self._keep("states", lambda: towers.token_states(*texts))

    def _reads(self, vertex: str, tower: str) -> bool:
        return vertex in self._stage.vertices and tower not in self._live and self._cache.features != "off"

    def _keep(self, name: str, features: Callable[[], Features]) -> None:
        try:
            self._read[name] = features()
        except NoRoom as error:
            if self._cache.features != "auto":
                raise NoRoom(f"{error}; set cache.folder, cache.dtype=int8 for token states, or cache=auto") from None
            self._towers.cache.do_without(error)

    def _leave_out_unreadable(self) -> None:
        features = self._read["image"]
        bad_N = features.unreadable()
        if bad_N.any():
            self.note(self.rows.images_N[bad_N].tolist())
            kept = np.flatnonzero(~bad_N)
            self._read["image"] = Features(features.table, features.rows[kept])
            self.rows = self.rows.select(kept)

    def note(self, unreadable: Sequence[int]) -> None:
        """Report pictures that cannot be read; too many of them are an error."""
        if not len(unreadable):
            return
        assert self._captions is not None
        for image in sorted({int(image) for image in unreadable} - self._unreadable):
            self._unreadable.add(image)
            self._report(self._captions.files[image])
        count, whole = len(self._unreadable), len(np.unique(self.rows.images_N))
        if count > self._cache.max_bad_fraction * whole:
            raise DataError(
                f"{self._captions.folder}: {count} of {whole} pictures cannot be read, such as "
                f"{self._captions.files[min(self._unreadable)]}; repair them and prepare with --again, or raise "
                "cache.max_bad_fraction"
            )

    @property
    def decodes(self) -> bool:
        """Whether the pictures are files, and read in every step."""
        return self._reads_pictures and self._captions is not None and self._captions.pixels is None

    def files(self, rows: np.ndarray) -> list[Path]:
        """The copies of features, and of what pictures are read from in every step."""
        found = [path for features in self._read.values() for path in features.files(rows)]
        if self._captions is not None and self._captions.pixels is None and self._reads_pictures:
            pictures = (self._captions.files[image] for image in np.unique(self.rows.images_N[rows]).tolist())
            found += [path for path in dict.fromkeys(map(container, pictures)) if is_copy(path)]
        return found

    @property
    def _reads_pictures(self) -> bool:
        return "image" in self._stage.vertices and "image" not in self._read

    def batch(self, rows: np.ndarray) -> TriangleBatch:
        """The batch of some rows, on the CPU; pictures that cannot be read are noted."""
        batch, unreadable = self.read(rows)
        self.note(unreadable)
        return batch

    def read(self, rows: np.ndarray) -> tuple[TriangleBatch, list[int]]:
        """The batch of some rows, on the CPU, and the pictures that could not be read."""
        if not self._reads_pictures:
            return self._batch(rows, None), []
        shown, pixels_BCHW, unreadable = self._pixels(rows)
        return self._batch(shown, pixels_BCHW), unreadable

    def _batch(self, rows: np.ndarray, pixels_BCHW: Tensor | None) -> TriangleBatch:
        columns, vertices = self.rows, self._stage.vertices
        fields: dict[str, Any] = {
            "languages_B": torch.from_numpy(columns.languages_N[rows].astype(np.int64)),
            "groups_B": torch.from_numpy(columns.groups_N[rows]),
        }
        if self._marks_duplicates:
            fields["texts_B"] = torch.from_numpy(columns.token_keys_N2[rows, 0].astype(np.int64))
        for vertex, name in (("image", "image_BE"), ("teacher_text", "teacher_BE"), ("pooled", "pooled_BH")):
            if vertex in self._read:
                fields[name] = self._read[vertex].take(rows)
        if self.centroids is not None:
            fields["centroid_BD"] = self.centroids.of(columns.groups_N[rows])
        if "states" in self._read:
            fields["states_BTH"], fields["mask_BT"] = self._read["states"].padded(rows)
        if pixels_BCHW is not None:
            change = self._stage.augment
            fields["pixels_BCHW"] = augment(pixels_BCHW, change.shift, change.colour) if change else pixels_BCHW
        if "teacher_text" in vertices:
            fields["has_teacher_B"] = torch.from_numpy(columns.has_teacher_N[rows])
            if "teacher_text" not in self._read:
                texts = [columns.teacher_texts[row] for row in rows]
                fields["teacher_ids_BT"] = self._teacher_ids(texts)
        if "student_text" in vertices and not {"pooled", "states"} & self._read.keys():
            padding = self._towers.model.encoder.tokenizer.pad
            fields["ids_BT"], fields["mask_BT"] = pad([columns.tokens[row] for row in rows], padding)
        return TriangleBatch(**fields)

    def _pixels(self, rows: np.ndarray) -> tuple[np.ndarray, Tensor, list[int]]:
        """The rows to train on, their pictures (B, 3, S, S), and those that could not be read."""
        assert self._captions is not None
        clip, images = self._towers.model.clip[0], self.rows.images_N[rows]
        pixels_BCHW, bad = read_pixels(self._captions, images, clip.transform, clip.preprocess)
        if bad:
            good = np.setdiff1d(np.arange(len(rows)), bad)
            shown = np.arange(len(rows))
            shown[bad] = np.resize(good, len(bad))
            rows, pixels_BCHW = rows[shown], pixels_BCHW[shown]
        return rows, pixels_BCHW, images[bad].tolist()

    def _teacher_ids(self, texts: list[str]) -> Tensor:
        """Ids (B, T) of texts in randomly drawn templates while the tower learns; frozen, (B, K, T) in all of them."""
        model, templates = self._towers.model, self._stage.templates
        if not templates or "teacher_text" not in self._live:
            return model.teacher_tokens(texts, templates)
        draw = random.Random(int(torch.randint(2**31, ())))
        return model.teacher_tokens([draw.choice(templates).replace("{}", text) for text in texts])

"""From rows to a batch of the triangle: the one place that knows which vertices are read and which are computed."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mclip_kit.data.batching import pad
from mclip_kit.data.captions import Captions
from mclip_kit.data.datasets import TriangleRows
from mclip_kit.data.transforms import augment, read_pixels
from mclip_kit.errors import DataError
from mclip_kit.features import hashing
from mclip_kit.features.extract import Features, FrozenTowers
from mclip_kit.features.table import NoRoom


@dataclass(frozen=True)
class Needs:
    """What a stage asks for.

    Attributes:
        vertices: of image, teacher_text, student_text, those on some edge.
        live: towers that compute in every step, because they are trained or their input changes.
        templates: patterns with {} for the teacher's text while it is live.
        shift, colour: augmentation of the pictures while the image tower is live.
        cache: which outputs of frozen towers are read: none, one a row, or the encoder's token states too; auto: those
            that the disk has room for.
        max_bad_fraction: share of pictures that may be unreadable.
        duplicates: whether rows with the same text are to be known.
    """

    vertices: frozenset[str]
    live: frozenset[str]
    templates: Sequence[str] = ()
    shift: int = 0
    colour: float = 0.0
    cache: Literal["off", "pooled", "tokens", "auto"] = "auto"
    max_bad_fraction: float = 0.01
    duplicates: bool = False


class Feed:
    """Batches of a stage's examples. Everything random is drawn from torch's default generator.

    Rows whose picture cannot be read are left out of `examples`. Where pictures are read in every step, such a row
    shows another one of its batch instead.

    Args:
        report: takes the path of each unreadable picture, once.
    Raises:
        DataError: too many pictures are unreadable.
        NoRoom: what the stage wants to be kept does not fit on the disk.
    """

    def __init__(
        self,
        frozen: FrozenTowers,
        examples: TriangleRows,
        needs: Needs,
        captions: Captions | None = None,
        report: Callable[[Path], None] = lambda path: None,
    ) -> None:
        self._frozen, self._needs, self._captions, self._report = frozen, needs, captions, report
        self._unreadable: set[int] = set()
        self._read: dict[str, Features] = {}
        self.examples = examples
        if self._reads("image", "image"):
            assert captions is not None
            self._keep("image", lambda: frozen.images(captions, examples.images_N))
        if "image" in self._read:
            self._leave_out_unreadable()
        examples = self.examples
        if self._reads("teacher_text", "teacher_text"):
            self._keep("teacher_text", lambda: frozen.teacher_texts(examples.teacher_texts))
        if self._reads("student_text", "encoder"):
            if frozen.model.projector.blocks is None:
                self._keep("pooled", lambda: frozen.pooled(examples.tokens, examples.lengths_N))
            elif needs.cache in ("tokens", "auto"):
                self._keep("states", lambda: frozen.token_states(examples.tokens, examples.lengths_N))

    def _reads(self, vertex: str, tower: str) -> bool:
        return vertex in self._needs.vertices and tower not in self._needs.live and self._needs.cache != "off"

    def _keep(self, name: str, features: Callable[[], Features]) -> None:
        try:
            self._read[name] = features()
        except NoRoom as error:
            if self._needs.cache != "auto":
                raise NoRoom(f"{error}; set cache.folder, cache.dtype=int8 for token states, or cache=auto") from None
            self._frozen.cache.log(f"{error}: computed in every step instead")

    def _leave_out_unreadable(self) -> None:
        features = self._read["image"]
        bad_N = features.unreadable()
        if bad_N.any():
            self._note(self.examples.images_N[bad_N])
            kept = np.flatnonzero(~bad_N)
            self._read["image"] = Features(features.table, features.rows[kept])
            self.examples = self.examples.some(kept)

    def _note(self, images: np.ndarray) -> None:
        """Report pictures that could not be read; too many of them end the run."""
        assert self._captions is not None
        for image in sorted({int(image) for image in images} - self._unreadable):
            self._unreadable.add(image)
            self._report(self._captions.files[image])
        count, whole = len(self._unreadable), len(np.unique(self.examples.images_N))
        if count > self._needs.max_bad_fraction * whole:
            raise DataError(
                f"{self._captions.folder}: {count} of {whole} pictures cannot be read, such as "
                f"{self._captions.files[min(self._unreadable)]}; mend them, or raise cache.max_bad_fraction"
            )

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        """The fields of a triangle's TriangleBatch for some rows."""
        examples, vertices = self.examples, self._needs.vertices
        pixels_BCHW = None
        if "image" in vertices and "image" not in self._read:
            rows, pixels_BCHW = self._pixels(rows)
        fields = {
            "languages_B": torch.from_numpy(examples.languages_N[rows]),
            "groups_B": torch.from_numpy(examples.groups_N[rows]),
        }
        if self._needs.duplicates:
            known_B2 = hashing.hash_tokens(examples.tokens[row] for row in rows)
            fields["texts_B"] = torch.from_numpy(known_B2[:, 0].astype(np.int64))
        for vertex, name in (("image", "image_BE"), ("teacher_text", "teacher_BE"), ("pooled", "pooled_BH")):
            if vertex in self._read:
                fields[name] = self._read[vertex].take(rows)
        if "states" in self._read:
            fields["states_BTH"], fields["mask_BT"] = self._read["states"].padded(rows)
        if pixels_BCHW is not None:
            fields["pixels_BCHW"] = augment(pixels_BCHW, self._needs.shift, self._needs.colour)
        if "teacher_text" in vertices:
            texts = [examples.teacher_texts[row] for row in rows]
            fields["has_teacher_B"] = torch.tensor([bool(text) for text in texts])
            if "teacher_text" not in self._read:
                fields["teacher_ids_BT"] = self._frozen.model.teacher_tokens(self._dress(texts))
        if "student_text" in vertices and not {"pooled", "states"} & self._read.keys():
            padding = self._frozen.model.encoder.tokenizer.pad
            fields["ids_BT"], fields["mask_BT"] = pad([examples.tokens[row] for row in rows], padding)
        return fields

    def _pixels(self, rows: np.ndarray) -> tuple[np.ndarray, Tensor]:
        """The rows to train on, and their pictures (B, 3, S, S)."""
        assert self._captions is not None
        clip, images = self._frozen.model.clip[0], self.examples.images_N[rows]
        pixels_BCHW, bad = read_pixels(self._captions, images, clip.transform, clip.preprocess)
        if bad:
            self._note(images[bad])
            good = np.setdiff1d(np.arange(len(rows)), bad)
            shown = np.arange(len(rows))
            shown[bad] = np.resize(good, len(bad))
            rows, pixels_BCHW = rows[shown], pixels_BCHW[shown]
        return rows, pixels_BCHW

    def _dress(self, texts: list[str]) -> list[str]:
        if not self._needs.templates:
            return texts
        draw = random.Random(int(torch.randint(2**31, ())))
        return [draw.choice(self._needs.templates).replace("{}", text) for text in texts]

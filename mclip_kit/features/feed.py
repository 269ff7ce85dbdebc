"""From rows to a batch: the one place that knows which vertices are read and which are computed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mclip_kit.data.batching import pad
from mclip_kit.data.captions import Captions
from mclip_kit.data.examples import Examples
from mclip_kit.data.pictures import augment, to_pixels
from mclip_kit.features.store import Store
from mclip_kit.towers.mode import evaluating
from mclip_kit.towers.model import MultilingualClip


@dataclass(frozen=True)
class Needs:
    """What a stage asks for.

    Attributes:
        vertices: of image, teacher_text, student_text, those on some edge.
        live: towers that compute in every step, because they are trained or their input changes.
        templates: patterns with {} for the teacher's text while it is live.
        shift, colour: augmentation of the pictures while the image tower is live.
    """

    vertices: frozenset[str]
    live: frozenset[str]
    templates: Sequence[str] = ()
    shift: int = 0
    colour: float = 0.0


class Frozen:
    """Features of a model's frozen towers, through a store."""

    def __init__(self, model: MultilingualClip, store: Store) -> None:
        self.model = model
        self.store = store

    def images(self, captions: Captions, images: np.ndarray) -> tuple[Tensor, Tensor]:
        """CLIP's image embeddings (M, E) and the row in them of each picture, before the clip projector."""
        keys = [captions.image_key(int(image)) for image in images]
        return self.store.get("image", keys, lambda part: self._eval("image", self.pixels(captions, images[part])))

    def teacher_texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The teacher's text embeddings (M, E) and the row in them of each text, before the clip projector."""
        compute = lambda part: self._eval("teacher_text", self.model.teacher_tokens([texts[i] for i in part]))  # noqa: E731
        return self.store.get("teacher_text", texts, compute, [len(text) for text in texts])

    def pooled(self, tokens: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """The encoder's pooled states (M, H) and the row in them of each text."""

        def compute(part: list[int]) -> Tensor:
            ids_BT, mask_BT = self.model.encoder.pad([tokens[i] for i in part])
            return self.model.projector.pool(self._eval("encoder", ids_BT, mask_BT), mask_BT)

        keys = [np.asarray(ids, np.int32).tobytes().hex() for ids in tokens]
        return self.store.get("encoder", keys, compute, [len(ids) for ids in tokens], 64)

    def pixels(self, captions: Captions, images: np.ndarray) -> Tensor:
        """Normalised pixels (N, 3, S, S)."""
        clip = self.model.clip[0]
        return to_pixels(captions.pixels[images], clip.transform, clip.preprocess)

    def _eval(self, tower: str, *inputs: Tensor) -> Tensor:
        module = getattr(self.model, tower)
        with evaluating(module):
            outputs: Tensor = module(*(tensor.to(self.model.device) for tensor in inputs))
        return outputs


class Feed:
    """Batches of a stage's examples. Everything random is drawn from torch's default generator."""

    def __init__(self, frozen: Frozen, examples: Examples, needs: Needs, captions: Captions | None = None) -> None:
        self._frozen, self._examples, self._needs, self._captions = frozen, examples, needs, captions
        self._read: dict[str, tuple[Tensor, Tensor]] = {}
        if self._reads("image", "image"):
            assert captions is not None
            self._read["image"] = frozen.images(captions, examples.images_N)
        if self._reads("teacher_text", "teacher_text"):
            self._read["teacher_text"] = frozen.teacher_texts(examples.teacher_texts)
        if self._reads("student_text", "encoder") and frozen.model.projector.blocks is None:
            self._read["student_text"] = frozen.pooled(examples.tokens)

    def _reads(self, vertex: str, tower: str) -> bool:
        return vertex in self._needs.vertices and tower not in self._needs.live

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        """The fields of a triangle's Batch for some rows."""
        examples, vertices = self._examples, self._needs.vertices
        fields = {
            "languages_B": torch.from_numpy(examples.languages_N[rows]),
            "groups_B": torch.from_numpy(examples.groups_N[rows]),
        }
        for vertex, (values, row_of) in self._read.items():
            name = {"image": "image_BE", "teacher_text": "teacher_BE", "student_text": "pooled_BH"}[vertex]
            fields[name] = values[row_of[torch.from_numpy(rows)]]
        if "image" in vertices and "image" not in self._read:
            assert self._captions is not None
            pixels_BCHW = self._frozen.pixels(self._captions, examples.images_N[rows])
            fields["pixels_BCHW"] = augment(pixels_BCHW, self._needs.shift, self._needs.colour)
        if "teacher_text" in vertices:
            texts = [examples.teacher_texts[row] for row in rows]
            fields["has_teacher_B"] = torch.tensor([bool(text) for text in texts])
            if "teacher_text" not in self._read:
                fields["teacher_ids_BT"] = self._frozen.model.teacher_tokens(self._dress(texts))
        if "student_text" in vertices and "student_text" not in self._read:
            fields["ids_BT"], fields["mask_BT"] = pad(
                [examples.tokens[row] for row in rows], self._frozen.model.encoder.tokenizer.pad
            )
        return fields

    def _dress(self, texts: list[str]) -> list[str]:
        if not self._needs.templates:
            return texts
        draw = random.Random(int(torch.randint(2**31, ())))
        return [draw.choice(self._needs.templates).replace("{}", text) for text in texts]

"""Search an index by texts in any language, or by pictures.

Shapes: Q queries, K hits, D embedding.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mclip_kit.errors import CheckpointError
from mclip_kit.layout import MODEL_CONFIG
from mclip_kit.models.encoding import Pictures, Texts, as_texts
from mclip_kit.models.student import Student, load_student
from mclip_kit.search.index import gone_of, nearest, open_index
from mclip_kit.search.space import image_space, image_space_of
from mclip_kit.storage import fetch, place

if TYPE_CHECKING:
    from mclip_kit.models.multilingual_clip import MultilingualClip


@dataclass(frozen=True)
class Hit:
    """A picture that was found.

    Attributes:
        file: a path, a tar member or a row of an array, see `data.images`.
        score: cosine similarity.
        caption: that was embedded with it; empty: none.
        row: of the index.
    """

    file: str
    score: float
    caption: str
    row: int


class Search:
    """An index and the model that reads its queries. Any number of threads may call it at once.

    >>> import mclip_kit
    >>> search = mclip_kit.Search("index", model)
    >>> [hit.score <= 1 for hit in search.texts("ein roter Apfel", top=2)[0]]
    [True, True]

    Attributes:
        student: reads queries that are texts.
        count: pictures that can be found.

    Args:
        index: the folder that `index.build` wrote.
        model: a model or its folder. None: the one that embedded the pictures.
        device: as for `mclip_kit.load`.
    Raises:
        CheckpointError: the index is missing or damaged, or its vectors are not of the model's image tower.
    """

    def __init__(
        self,
        index: str | Path,
        model: "MultilingualClip | str | Path | None" = None,
        device: str | torch.device = "auto",
    ) -> None:
        self.facts, self._index, self.rows = open_index(place(index))
        if model is None:
            model = named = str(self.facts["model"])
            if not named:
                raise CheckpointError(f"{index}: it does not say which model made its vectors; name it: --model MODEL")
            if not fetch(place(named) / MODEL_CONFIG).is_file():
                raise CheckpointError(
                    f"{index}: the model of its vectors is not in {named} any more; name it: --model MODEL"
                )
        self._lock = threading.RLock()  # of the tokenizer and of the towers, which are busy with one batch anyway
        self._given, self._device = model, device
        self.student = model if isinstance(model, Student) else load_student(model, device)
        if self.student.width != self.facts["width"]:
            raise CheckpointError(
                f"{index}: its vectors have {self.facts['width']} numbers, the model's {self.student.width}; name the "
                "model that made them: --model MODEL"
            )
        if not self._is_of_the_image_tower(self.facts["space"]):
            raise CheckpointError(
                f"{index}: its vectors were made by another image tower, that of {self.facts['model']}; name a model "
                "with this one, or embed the pictures again"
            )
        self._gone = gone_of(self.rows)
        self._files, self._captions = self.rows["image_path"], self.rows["caption"]
        self.count = len(self.rows) - len(self._gone)

    def _is_of_the_image_tower(self, space: str) -> bool:
        """Whether vectors of this `image_space` are those of the model's image tower; an empty one is not known."""
        if not space:
            return True
        folder = None if isinstance(self._given, Student) else fetch(place(self._given))
        return (folder is not None and space == image_space_of(folder, self.student)) or space == image_space(
            self.model
        )

    @property
    def model(self) -> "MultilingualClip":
        """The whole model; texts need only its student, so its CLIP is loaded when it is first used."""
        from mclip_kit.models.multilingual_clip import MultilingualClip, load

        with self._lock:
            if not isinstance(self.student, MultilingualClip):
                assert not isinstance(self._given, Student)
                self.student = load(self._given, self._device)
            return self.student

    def texts(self, queries: Texts, top: int = 10, tower: str = "student") -> list[list[Hit]]:
        """The pictures that are nearest to each text, best first.

        Args:
            queries: one text or Q of them, in any language.
            top: K; fewer are found if the index has fewer.
            tower: `student`, or `teacher`: the CLIP's own text tower.
        Raises:
            TypeError: a query is not a string.
        """
        return self.vectors(self.encode(queries, tower), top)

    def pictures(self, queries: Pictures, top: int = 10) -> list[list[Hit]]:
        """The pictures that are nearest to each picture, best first.

        Raises:
            DataError: a file cannot be read as a picture.
        """
        return self.vectors(self.encode_pictures(queries), top)

    def encode(self, queries: Texts, tower: str = "student") -> Tensor:
        """Vectors (Q, D) of texts, by one thread at a time; arguments as for `texts`."""
        if tower not in ("student", "teacher"):
            raise ValueError(f"tower: must be student or teacher, not {tower!r}")
        with self._lock:
            encode = self.student.encode_text if tower == "student" else self.model.encode_teacher_text
            return encode(as_texts(queries))

    def encode_pictures(self, queries: Pictures) -> Tensor:
        """Vectors (Q, D) of pictures, by one thread at a time."""
        with self._lock:
            return self.model.encode_image(queries)

    def vectors(self, query_QD: Tensor, top: int = 10) -> list[list[Hit]]:
        """The pictures that are nearest to each vector (Q, D), best first."""
        if not isinstance(top, int) or top < 1:
            raise ValueError(f"top: must be a whole number of at least 1, not {top!r}")
        if not len(query_QD):
            return []
        scores_QK, rows_QK = nearest(self._index, query_QD.numpy(), min(top, self.count), self._gone)
        return [
            [self._hit(row, score) for row, score in zip(rows, scores, strict=True) if row >= 0]
            for rows, scores in zip(rows_QK.tolist(), scores_QK.tolist(), strict=True)
        ]

    def _hit(self, row: int, score: float) -> Hit:
        return Hit(self._files[row].as_py(), float(score), self._captions[row].as_py(), row)


def untrained_script(text: str, languages: Sequence[str]) -> str | None:
    """The script of most of a text's letters, if none of the languages is written in it; else None.

    >>> untrained_script("תפוח אדום", ["en", "ar"])
    'Hebrew'
    >>> untrained_script("roter Apfel", ["en"]) is None
    True
    """
    from mclip_kit.data.scripts import scripts_of, written_in

    known = {script for language in languages for script in written_in(language)}
    most = scripts_of(text)[:1]
    return most[0] if known and most and most[0] not in known else None

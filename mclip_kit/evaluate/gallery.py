"""What a report shows besides numbers: queries with the pictures that a model found, and pictures that it confuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class QueryResult:
    """One query and the pictures that a model found for it.

    Attributes:
        language: of the query: an ISO code, such as `ja` or `zh-tw`.
        query: its text.
        pictures: the top k, best first, each uint8 (S, S, 3).
        right: of each picture, whether it is a right answer.
    """

    language: str
    query: str
    pictures: list[np.ndarray]
    right: list[bool]


@dataclass(frozen=True)
class ConfusedPair:
    """A picture whose captions find another picture first; of results.json, with the model's name added.

    Attributes:
        picture: the name of the right picture.
        found: the name of the wrong picture.
        count: captions of the right picture that find the wrong one first.
        captions: captions of the right picture.
        languages: of those that find the wrong one.
        language, query: one of them.
    """

    picture: str
    found: str
    count: int
    captions: int
    languages: list[str]
    language: str
    query: str


@dataclass(frozen=True)
class Gallery:
    """The pictures of report.html.

    Attributes:
        queries: heading -> queries and what they found.
        pictures: (full path of the prepared folder, name) -> picture, uint8 (S, S, 3), of those that are confused.
        credit: authors and licences of the pictures.
        model: whose queries they are.
    """

    queries: Mapping[str, Sequence[QueryResult]] = field(default_factory=dict)
    pictures: Mapping[tuple[str, str], np.ndarray] = field(default_factory=dict)
    credit: str = ""
    model: str = ""

"""Corpora: what `data_prep/*.yaml` declares, and the readers that turn a source into plain tables."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from mclip_kit.errors import DataError
from mclip_kit.recipe import Count, Fraction, Section, find, parse, read_yaml, shipped


class Licence(Section):
    """Who made a part of a corpus, and on what terms it may be used."""

    what: str = Field(description="The part: pictures, names, captions.")
    licence: str = Field(description="The licence's name.")
    by: str = Field(description="Whom to credit.")
    package: str | None = Field(None, description="The package that carries it.")


class Vocabulary(Section):
    """The SentencePiece model that is trained when none is given."""

    pieces: Count = Field(description="Vocabulary size.")
    coverage: Fraction = Field(description="Share of characters that get a piece of their own.")


class Corpus(Section):
    """A corpus declaration: data, no code."""

    about: str = Field(description="One line: what it holds.")
    reader: str = Field(description="The module in mclip_kit.data.corpora that reads it.")
    languages: list[str] = Field(description="ISO 639-1 codes; the first one is the teacher's language.")
    caption_languages: list[str] = Field([], description="More languages with captions, kept out of the bitext.")
    licences: list[Licence]
    obtain: str = Field(description="How a user gets it.")
    expect: dict[str, int] = Field({}, description="Counts that a whole source has.")
    splits: dict[str, Fraction] = Field({}, description="Held-out shares; the rest is train.")
    options: dict[str, Any] = Field({}, description="What the reader takes besides.")
    vocabulary: Vocabulary = Field(default_factory=lambda: Vocabulary(pieces=8000, coverage=0.9995))


@dataclass(frozen=True)
class Caption:
    """One row of the caption table."""

    image: int
    language: str
    text: str


@dataclass(frozen=True)
class Content:
    """What a reader found. Pictures are rows of `pixels`; all lists run over pictures.

    Attributes:
        names: a stable name per picture.
        splits: train, valid or test per picture.
        groups: pictures with the same number are the same picture to a viewer.
        strata: a label per picture by which results are also reported.
        pixels: uint8 (N, S, S, 3).
        captions: rows of the caption table.
    """

    names: list[str]
    splits: list[str]
    groups: list[int]
    strata: list[str]
    pixels: np.ndarray
    captions: Sequence[Caption]


Reader = Callable[[Corpus], Content]


def declaration(name: str) -> Corpus:
    """The declaration of a corpus, by name or path."""
    path = find(name, "data_prep")
    return parse(read_yaml(path), Corpus, str(path))


def declared() -> list[Path]:
    """Every shipped declaration."""
    return sorted(shipped("data_prep").glob("*.yaml"))


def reader(corpus: Corpus) -> Reader:
    """The reader that a declaration names."""
    try:
        module = import_module(f"mclip_kit.data.corpora.{corpus.reader}")
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("mclip_kit"):
            raise DataError(f"there is no corpus reader {corpus.reader!r}") from None
        raise DataError(f"{error.name} is not installed: {corpus.obtain}") from None
    read: Reader = module.read
    return read

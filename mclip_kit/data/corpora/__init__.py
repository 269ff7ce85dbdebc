"""Corpora: what `data_prep/*.yaml` declares, and the readers that turn a source into rows."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import Field, field_validator, model_validator

from mclip_kit.config.yaml import Count, Fraction, Section, find, overridden, parse, read_yaml, shipped
from mclip_kit.data.corpora.source import Source
from mclip_kit.data.languages import normal
from mclip_kit.errors import DataError, RecipeError

S = TypeVar("S", bound=Section)

SPLIT = re.compile(r"(train|valid|test)[A-Za-z0-9_-]{,50}")
CODE = re.compile(r"[a-z]{2,3}(_[a-z0-9]+)*")
ROOMS = ("mclip_kit.data.corpora", "mclip_kit.demo")  # where readers are
COUNTED = r"^(images(\.[^.]+)?|(captions|pairs)\.[^.]+\.[^.]+)$"


class Licence(Section):
    """Who made a part of a corpus, and on what terms it may be used."""

    what: str = Field(description="The part: pictures, names, captions.")
    licence: str = Field(description="The licence's name.")
    by: str = Field(description="Whom to credit.")
    package: str | None = Field(None, description="The package that carries it.")


class Vocabulary(Section):
    """The SentencePiece model that is trained when none is given."""

    pieces: Annotated[int, Field(ge=1, le=2**20)] = Field(8000, description="Vocabulary size.")
    coverage: Annotated[float, Field(ge=0.98, le=1)] = Field(
        0.9995, description="Share of characters that get a piece of their own."
    )


class Cleaning(Section):
    """What is left out of a corpus; everything that is, is counted. Empty texts always are."""

    control: bool = Field(True, description="Remove control characters, zero-width spaces and byte-order marks.")
    duplicates: bool = Field(
        False, description="Leave out sentence pairs, and captions of a picture, that came before."
    )
    characters: tuple[Count, Count] | None = Field(None, description="Least and most characters of a text.")
    ratio: Annotated[float, Field(ge=1)] | None = Field(
        None, description="Most characters of a pair's longer side, as a multiple of the shorter's."
    )
    language: bool = Field(
        False, description="Leave out texts that py3langid, which must be installed, takes for another language."
    )
    max_tokens: Annotated[int, Field(ge=3)] = Field(
        512, description="Tokens that the encoder takes, specials included."
    )
    too_long: Literal["cut", "drop"] = Field("cut", description="What happens to sentences beyond `max_tokens`.")

    @field_validator("characters")
    @classmethod
    def _least_comes_first(cls, characters: tuple[int, int] | None) -> tuple[int, int] | None:
        if characters and characters[0] > characters[1]:
            raise ValueError("the least comes first, then the most")
        return characters


class Corpus(Section):
    """A corpus declaration: data, no code."""

    name: str = Field("", description="The declaration's file name; given when it is read.")
    about: str = Field(description="One line: what it holds.")
    reader: str = Field(description="The module in mclip_kit.data.corpora that reads it.")
    languages: Annotated[list[str], Field(min_length=1)] = Field(
        description="ISO 639-1 codes; parallel text is paired with the first one, the teacher's language."
    )
    caption_languages: list[str] = Field([], description="More languages with captions, kept out of the bitext.")
    licences: list[Licence]
    obtain: str = Field(description="How a user gets it.")
    size: str = Field("", description="How large it is, in a few words.")
    notes: list[str] = Field([], description="What a user should know: quirks, overlaps with other corpora.")
    pictures: str | None = Field(
        None, description="Where the pictures are from (coco, flickr30k): names are compared inside it. None: unique."
    )
    checksums: dict[str, str] = Field({}, description="File, uncompressed -> SHA-256, where it is fixed.")
    expect: dict[Annotated[str, Field(pattern=COUNTED)], int] = Field(
        {}, description="Counts that a whole source has: images.SPLIT, captions.SPLIT.LANG, pairs.SPLIT.LANG-LANG."
    )
    splits: dict[str, Fraction] = Field({}, description="Held-out shares; the rest is train.")
    options: dict[str, Any] = Field({}, description="What the reader takes besides.")
    cleaning: Cleaning = Field(default_factory=lambda: Cleaning.model_validate({}))
    vocabulary: Vocabulary = Field(default_factory=lambda: Vocabulary.model_validate({}))

    @field_validator("splits")
    @classmethod
    def _shares_are_of_one_whole(cls, splits: dict[str, float]) -> dict[str, float]:
        if sum(splits.values()) > 1 + 1e-9:
            raise ValueError("the shares are more than 1 together")
        return splits

    @model_validator(mode="after")
    def _codes_are_normal(self) -> "Corpus":
        codes = [*self.languages, *self.caption_languages]
        for code in codes:
            if code != normal(code):
                raise ValueError(f"language {code!r} is spelled {normal(code)!r} here")
            if not CODE.fullmatch(code):
                raise ValueError(f"language {code!r} is no code such as en or pt_br")
        if len(set(codes)) < len(codes):
            raise ValueError("a language is named twice")
        return self

    def only(self, languages: list[str]) -> "Corpus":
        """The same corpus, in some of its languages.

        Raises:
            RecipeError: it has not all of them.
        """
        wanted = [normal(language) for language in languages]
        unknown = [language for language in wanted if language not in (*self.languages, *self.caption_languages)]
        if unknown:
            raise RecipeError(f"no {', '.join(unknown)} in this corpus; there are {', '.join(self.languages)}")
        kept = [code for code in self.languages if code in wanted]
        if not kept:
            raise RecipeError(f"choose one of {', '.join(self.languages)} too: the others are for scoring only")
        others = [code for code in self.caption_languages if code in wanted]
        narrower: dict[str, Any] = {"languages": kept, "caption_languages": others}
        if wanted != [*self.languages, *self.caption_languages]:
            narrower |= {"expect": {key: n for key, n in self.expect.items() if _concerns(key, kept + others)}}
        return self.model_copy(update=narrower)


def _concerns(key: str, languages: list[str]) -> bool:
    """Whether an expected count is of some languages alone; pictures are counted over all."""
    named = key.split(".")[-1].split("-")
    return key.count(".") == 2 and set(named) <= set(languages)


@dataclass(slots=True)  # not frozen: there are many, and frozen ones take five times as long to make
class Row:
    """What belongs together: a picture's captions, or sentences that say the same, or both.

    Attributes:
        split: train, valid, test, or a name that begins so.
        texts: (language, text); a language may come several times.
        image: the picture's name; the same name again is the same picture.
        file: where the picture is, if the reader knows: a path, or a member of a tar (`data.members`).
        parallel: the texts are translations of each other, so they are bitext too.
        group: pictures with the same number are the same picture to a viewer; None: the picture is its own.
        stratum: a label by which results are also reported.
    """

    split: str
    texts: list[tuple[str, str]]
    image: str | None = None
    file: str | None = None
    parallel: bool = False
    group: int | None = None
    stratum: str = "all"


@dataclass(frozen=True)
class Content:
    """What a reader found.

    Attributes:
        rows: a stream of any length, read once.
        pixels: uint8 (N, S, S, 3), where the reader draws the pictures itself: those of the rows, in their order.
    """

    rows: Iterable[Row]
    pixels: np.ndarray | None = None


Reader = Callable[[Corpus, Source], Content]


def declaration(name: str, overrides: Sequence[str] = ()) -> Corpus:
    """The declaration of a corpus, by name or path, with `key.path=value` overrides."""
    path = find(name, "data_prep")
    return parse(overridden(read_yaml(path) | {"name": path.stem}, overrides), Corpus, str(path))


def declared() -> list[Path]:
    """Every shipped declaration."""
    return sorted(shipped("data_prep").glob("*.yaml"))


def options(corpus: Corpus, schema: type[S]) -> S:
    """The declaration's options, as its reader takes them.

    Raises:
        RecipeError: an option is unknown, missing or wrong.
    """
    return parse(corpus.options, schema, f"options of reader {corpus.reader}")


def reader(corpus: Corpus) -> Reader:
    """The reader that a declaration names."""
    for room in ROOMS:
        try:
            module = import_module(f"{room}.{corpus.reader}")
        except ModuleNotFoundError as error:
            if error.name and error.name.startswith("mclip_kit"):
                continue
            raise DataError(f"{error.name} is not installed: {corpus.obtain}") from None
        if hasattr(module, "read"):
            read: Reader = module.read
            return read
    raise DataError(f"there is no corpus reader {corpus.reader!r}")

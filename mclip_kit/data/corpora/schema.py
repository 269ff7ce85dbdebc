"""What a corpus declaration (`data_prep/*.yaml`) may say."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from mclip_kit.config.yaml import Count, Fraction, Number, Section, Whole
from mclip_kit.data.languages import normalize_language
from mclip_kit.errors import RecipeError

CODE = re.compile(r"[a-z]{2,3}(_[a-z0-9]+)*")
COUNTED = r"^(images(\.[^.]+)?|(captions|pairs)\.[^.]+\.[^.]+)$"


class Licence(Section):
    """Who made a part of a corpus, and on what terms it may be used."""

    what: str = Field(description="The part: pictures, names, captions.")
    licence: str = Field(description="The licence's name.")
    by: str = Field(description="Whom to credit.")
    package: str | None = Field(None, description="The Python package that contains it.")


class Vocabulary(Section):
    """The SentencePiece model that is trained when the user gives none."""

    pieces: Annotated[Whole, Field(ge=1, le=2**20)] = Field(8000, description="Vocabulary size.")
    coverage: Annotated[Number, Field(ge=0.98, le=1)] = Field(
        0.9995, description="Share of the characters that get a piece."
    )
    max_unknown: Annotated[Number, Field(ge=0, le=1)] = Field(
        0.2, description="Largest share of <unk> among the pieces of a language; from 0.02 on there is a warning."
    )


class Cleaning(Section):
    """Which texts are left out of a corpus. Empty texts always are. What is left out is counted."""

    control: bool = Field(True, description="Remove control characters, zero-width spaces and byte-order marks.")
    duplicates: bool = Field(
        False, description="Leave out sentence pairs, and captions of a picture, that occurred before."
    )
    characters: tuple[Count, Count] | None = Field(None, description="Least and most characters of a text.")
    ratio: Annotated[Number, Field(ge=1)] | None = Field(
        None, description="Most characters of a pair's longer side, as a multiple of the shorter side's."
    )
    language: bool = Field(
        False, description="Leave out texts that py3langid, which must be installed, detects as another language."
    )
    max_tokens: Annotated[Whole, Field(ge=3)] = Field(
        512, description="Most tokens of a sentence, special tokens included; the encoder's limit."
    )
    too_long: Literal["cut", "drop"] = Field(
        "cut", description="Whether sentences longer than `max_tokens` are cut, or dropped with their pairs."
    )
    leaks: Literal["report", "drop", "keep"] = Field(
        "report",
        description="What becomes of training texts and pictures that valid or test has too: they stay and test sets "
        "are reported, they are dropped from train, or they stay and nothing is said.",
    )

    @field_validator("characters")
    @classmethod
    def _check_least_comes_first(cls, characters: tuple[int, int] | None) -> tuple[int, int] | None:
        if characters and characters[0] > characters[1]:
            raise ValueError("the least comes first, then the most")
        return characters


class Corpus(Section):
    """A corpus declaration: data, no code."""

    name: str = Field("", description="The declaration's file name; set when it is read.")
    about: str = Field(description="What it holds, in one line.")
    reader: str = Field(description="The module in mclip_kit.data.corpora that reads it.")
    languages: Annotated[list[str], Field(min_length=1)] = Field(
        description="ISO 639-1 codes; in parallel text, the first one (the teacher's) is paired with each other one."
    )
    caption_languages: list[str] = Field([], description="More languages with captions, kept out of the bitext.")
    licences: list[Licence] = Field(description="On what terms each part may be used; printed and kept.")
    obtain: str = Field(description="How a user gets the corpus.")
    size: str = Field("", description="How large it is, in a few words.")
    notes: list[str] = Field([], description="What a user should know: quirks, and what it was checked against.")
    overlaps: list[str] = Field(
        [], description="What it shares with training data; printed when it is prepared, listed and scored on."
    )
    pictures: str | None = Field(
        None,
        description="The collection that the pictures are from (coco, flickr30k), in which their names are unique. "
        "None: unique in this corpus only.",
    )
    checksums: dict[str, str] = Field({}, description="Uncompressed file -> SHA-256, for files that never change.")
    expect: dict[Annotated[str, Field(pattern=COUNTED)], int] = Field(
        {}, description="Counts of a whole source: images.SPLIT, captions.SPLIT.LANG, pairs.SPLIT.LANG-LANG."
    )
    splits: dict[str, Fraction] = Field(
        {},
        description="Held-out shares of rows whose split the source does not give, drawn by picture and by normalised "
        "text; the rest is train.",
    )
    held_out: Count | None = Field(
        None, description="About the most rows of a drawn split; None: the shares of `splits`, however long the corpus."
    )
    options: dict[str, Any] = Field({}, description="Options of the reader.")
    cleaning: Cleaning = Field(
        default_factory=lambda: Cleaning.model_validate({}), description="Which texts are left out."
    )
    vocabulary: Vocabulary = Field(
        default_factory=lambda: Vocabulary.model_validate({}), description="The SentencePiece model that is trained."
    )

    @field_validator("splits")
    @classmethod
    def _check_shares(cls, splits: dict[str, float]) -> dict[str, float]:
        if sum(splits.values()) > 1 + 1e-9:
            raise ValueError("the shares are more than 1 together")
        return splits

    @model_validator(mode="after")
    def _check_codes(self) -> "Corpus":
        codes = [*self.languages, *self.caption_languages]
        for code in codes:
            if code != normalize_language(code):
                raise ValueError(f"language {code!r} is spelled {normalize_language(code)!r} here")
            if not CODE.fullmatch(code):
                raise ValueError(f"language {code!r} is not a code such as en or pt_br")
        if len(set(codes)) < len(codes):
            raise ValueError("a language is named twice")
        return self

    def with_languages(self, languages: list[str]) -> "Corpus":
        """The same corpus in the given languages only.

        Raises:
            RecipeError: the corpus lacks one of them, or all of them are for scoring only.
        """
        wanted = [normalize_language(language) for language in languages]
        unknown = [language for language in wanted if language not in (*self.languages, *self.caption_languages)]
        if unknown:
            raise RecipeError(f"no {', '.join(unknown)} in this corpus; there are {', '.join(self.languages)}")
        kept = [code for code in self.languages if code in wanted]
        if not kept:
            raise RecipeError(f"choose one of {', '.join(self.languages)} too: the others are for scoring only")
        others = [code for code in self.caption_languages if code in wanted]
        narrower: dict[str, Any] = {"languages": kept, "caption_languages": others}
        if wanted != [*self.languages, *self.caption_languages]:
            expect = {key: count for key, count in self.expect.items() if _counts_only(key, kept + others)}
            narrower |= {"expect": expect}
        return self.model_copy(update=narrower)


def _counts_only(key: str, languages: list[str]) -> bool:
    """Whether an expected count is over these languages only; pictures are counted over all languages."""
    named = key.split(".")[-1].split("-")
    return key.count(".") == 2 and set(named) <= set(languages)

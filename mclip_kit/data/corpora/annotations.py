"""Reads captions that name their picture, from several files: Flickr30k, COCO, STAIR, COCO-CN.

Captions of the same picture are joined. All captions are held in memory: these corpora have about a million.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, model_validator

from mclip_kit.config.yaml import Section
from mclip_kit.data.corpora import Content, Corpus, Row, parse_options
from mclip_kit.data.corpora.account import Account
from mclip_kit.data.corpora.source import File, Source
from mclip_kit.data.images import SUFFIXES, picture_id, without_number
from mclip_kit.errors import DataError

KARPATHY = {"train": "train", "restval": "train", "val": "valid", "test": "test"}
TAG = re.compile(r":[A-Za-z]+\d*(?=\s|$)")
NEEDLESS_SPACE = re.compile(r"(?<![!-~]) | (?![!-~])")


class Splits(Section):
    """Which pictures are in which split."""

    karpathy: str | None = Field(None, description="Karpathy's dataset_*.json.")
    lists: dict[str, str] | None = Field(None, description="Split -> a file with the name of a picture in each line.")

    @model_validator(mode="after")
    def _check_one_is_given(self) -> "Splits":
        if (self.karpathy is None) == (self.lists is None):
            raise ValueError("give either karpathy or lists")
        return self


class Part(Section):
    """Captions in one language."""

    language: str
    format: Literal["karpathy", "coco", "numbered"] = Field(
        description="karpathy: dataset_*.json; coco: COCO's annotations; numbered: lines with NAME#N and a caption."
    )
    files: list[str] = Field(description="Their paths below the source, also with wildcards (* and ?).")
    split: str = Field(
        "", description="Of all its pictures, if there are no `options.splits`; empty: drawn by the corpus's `splits`."
    )
    segmented: bool = Field(
        False, description="Chinese with spaces between words, maybe with tags (`狗:n`): spaces and tags are removed."
    )
    optional: bool = Field(False, description="The source may lack it.")


class Options(Section):
    """Options of this reader."""

    splits: Splits | None = Field(None, description="None: each part has its own `split`.")
    captions: list[Part]
    parallel: bool = Field(False, description="Captions of a picture with the same number are translations.")


FoundParts = list[tuple[Part, File]]
NumberedCaptions = Iterator[tuple[str, int, str]]
"""(picture's name, number, caption)."""


@dataclass
class Picture:
    """A picture and its captions as (language, number, caption)."""

    name: str
    split: str
    texts: list[tuple[str, int, str]] = field(default_factory=list)


def read(corpus: Corpus, source: Source) -> Content:
    """One row for each picture; if captions with the same number are translations, one for each number of a picture.

    Raises:
        DataError: a file is missing or damaged, or a picture is in two splits.
    """
    chosen = parse_options(corpus, Options)
    languages = {*corpus.languages, *corpus.caption_languages}
    found = [(part, f) for part in chosen.captions if part.language in languages for f in _files(part, source)]
    if not found:
        raise DataError(f"{source.root}: no captions in {', '.join(sorted(languages))}; {corpus.obtain}")
    lists = _lists(chosen.splits, source)
    return Content(_rows(found, lists, corpus.pictures, chosen.parallel, source.account))


def _files(part: Part, source: Source) -> list[File]:
    found = [source.files(pattern) for pattern in part.files]
    if part.optional and not any(found):
        return []
    return [
        file for files, pattern in zip(found, part.files, strict=True) for file in files or [source.require(pattern)]
    ]


def _lists(splits: Splits | None, source: Source) -> list[tuple[str, File]]:
    """(split, file that lists its pictures); `karpathy` for a split if the file has the split of each picture."""
    if splits is None:
        return []
    named = {"karpathy": splits.karpathy} if splits.karpathy else splits.lists or {}
    return [(split, source.require(pattern)) for split, pattern in named.items()]


def _rows(
    found: FoundParts, lists: list[tuple[str, File]], source: str | None, parallel: bool, account: Account
) -> Iterator[Row]:
    pictures: dict[str, Picture] = {}
    for split, file in lists:
        names = _karpathy_splits(file) if split == "karpathy" else ((line.strip(), split) for line in file.lines())
        for name, where in names:
            if name:
                _find_or_add(pictures, name, where, source, file)
    outside: set[str] = set()
    for part, file in found:
        outside |= _add_captions(part, file, pictures, source, bool(lists), account)
    account.leave_out("pictures in no split, with their captions", next(iter(outside), ""), len(outside))
    for picture in pictures.values():
        numbers = sorted({number for _, number, _ in picture.texts}) if parallel and picture.texts else [None]
        for chosen in numbers:  # a picture without captions belongs to the gallery of its split
            texts = [(language, text) for language, number, text in picture.texts if chosen in (None, number)]
            yield Row(picture.split, texts, image=picture.name, parallel=parallel)


def _find_or_add(pictures: dict[str, Picture], name: str, split: str, source: str | None, file: File) -> Picture:
    """The picture with this name, which is added if it is new.

    Raises:
        DataError: it was added in another split.
    """
    name = without_number(name)
    picture = pictures.setdefault(picture_id(name, source), Picture(name, split))
    if picture.split != split:
        here, there = split or "none", picture.split or "none"
        raise DataError(f"{file}: picture {name} is in split {here} here, but was in {there} before; fix the lists")
    return picture


def _add_captions(
    part: Part, file: File, pictures: dict[str, Picture], source: str | None, closed: bool, account: Account
) -> set[str]:
    """Add a file's captions to their pictures; returns its pictures that are in no split.

    Args:
        closed: lists of the splits are given, so other pictures are left out instead of added.
    """
    inside, outside = False, set()
    for name, number, caption in FORMATS[part.format](file):
        picture = (
            pictures.get(picture_id(name, source)) if closed else _find_or_add(pictures, name, part.split, source, file)
        )
        if picture is None:
            outside.add(picture_id(name, source))
            continue
        inside = True
        if not picture.name.lower().endswith(tuple(SUFFIXES)) and name.lower().endswith(tuple(SUFFIXES)):
            picture.name = name
        if not caption.strip():
            account.ignore(f"empty captions in {part.language}", f"{file} picture {name}")
            continue
        picture.texts.append((part.language, number, _remove_segmentation(caption) if part.segmented else caption))
    if not inside:
        raise DataError(f"{file}: none of its {len(outside):,} pictures is in a split; is it from another corpus?")
    return outside


def _remove_segmentation(caption: str) -> str:
    """The caption without tags and spaces between words; two or more spaces stand for a comma."""
    return NEEDLESS_SPACE.sub("", re.sub(r"\s{2,}", "，", TAG.sub("", caption.strip())))


def _karpathy_splits(file: File) -> Iterator[tuple[str, str]]:
    for number, image in enumerate(_items(file, file.json(), "images")):
        split = _value(image, "split", str, file, "images", number)
        if split not in KARPATHY:
            raise DataError(
                f"{file}: images[{number}] has split {split!r}, none of {', '.join(KARPATHY)}; fix the file"
            )
        yield _value(image, "filename", str, file, "images", number), KARPATHY[split]


def _karpathy(file: File) -> NumberedCaptions:
    for number, image in enumerate(_items(file, file.json(), "images")):
        name = _value(image, "filename", str, file, "images", number)
        for index, sentence in enumerate(_value(image, "sentences", list, file, "images", number)):
            yield name, index, _caption(sentence, "raw", file, f"images[{number}].sentences", index)


def _coco(file: File) -> NumberedCaptions:
    content = file.json()
    names = {}
    for number, image in enumerate(_items(file, content, "images")):
        identity = _value(image, "id", int, file, "images", number)
        names[identity] = str(image.get("file_name") or identity)
    seen: dict[int, int] = {}
    for number, annotation in enumerate(_items(file, content, "annotations")):
        identity = _value(annotation, "image_id", int, file, "annotations", number)
        index = seen[identity] = seen.get(identity, -1) + 1
        name = names.get(identity, str(identity))
        yield name, index, _caption(annotation, "caption", file, "annotations", number)


def _items(file: File, content: Any, key: str) -> list[Any]:
    items = content.get(key) if isinstance(content, dict) else None
    if not isinstance(items, list):
        raise DataError(f"{file}: has no list {key!r}; is it the file that the declaration names?")
    return items


def _value(item: Any, key: str, kind: type, file: File, where: str, number: int) -> Any:
    value = item.get(key) if isinstance(item, dict) else None
    if not isinstance(value, kind):
        raise DataError(f"{file}: {where}[{number}] has no {key!r} ({kind.__name__}); fetch the file again")
    return value


def _caption(item: Any, key: str, file: File, where: str, number: int) -> str:
    """A caption; empty if it is null, which is counted."""
    is_null = isinstance(item, dict) and key in item and item[key] is None
    caption: str = "" if is_null else _value(item, key, str, file, where, number)
    return caption


def _numbered(file: File) -> NumberedCaptions:
    """Lines `NAME#N caption` or `NAME#TAG#N caption`, with a space or tab before the caption."""
    for number, line in enumerate(file.lines(), 1):
        key, _, caption = line.strip().replace("\t", " ", 1).partition(" ")
        name, *tag, index = key.split("#") if "#" in key else (key, "")
        if index.isascii() and index.isdigit() and len(tag) < 2:
            yield name, int(index), caption
        elif key:
            raise DataError(f"{file} line {number}: does not begin with NAME#N or NAME#TAG#N; fix or remove the line")


FORMATS: dict[str, Callable[[File], NumberedCaptions]] = {"karpathy": _karpathy, "coco": _coco, "numbered": _numbered}

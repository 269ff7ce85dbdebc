"""Reads shards of webdataset, as img2dataset writes them: tars in which consecutive members with one key are a sample.

Pictures are neither extracted nor copied: a row names the tar, the offset and the size (`data.images`).
"""

import glob
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any

from pydantic import Field

from mclip_kit.config.yaml import Section
from mclip_kit.data import images
from mclip_kit.data.corpora import Content, Corpus, Row, parse_options
from mclip_kit.data.corpora.source import Source
from mclip_kit.data.languages import normalize_language
from mclip_kit.errors import DataError, RecipeError, first_line
from mclip_kit.progress import tqdm

EXTENSIONS = ("jpg", "jpeg", "png", "webp")  # of pictures; the first that a sample has is used
MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
BROKEN = (tarfile.TarError, OSError, ValueError, OverflowError)  # what tarfile raises for headers that make no sense


class Options(Section):
    """Options of this reader."""

    shards: str | list[str] = Field(
        description="Tars below --source, or below the current folder; {000..099} and wildcards (* ? **) are expanded."
    )
    split: str = Field("", description="Of all rows; empty: drawn by the corpus's `splits`.")
    text: Annotated[str, Field(pattern=r"^(txt|json:.+)$")] = Field(
        "txt", description="Where the caption is: `txt` (if a sample has no txt, the json's `caption`), or json:FIELD."
    )
    language: str | None = Field(None, description="Of the captions; None: the corpus's first language.")
    language_field: str | None = Field(None, description="The field of the json with the language of the captions.")


@dataclass(frozen=True)
class Sample:
    """The members with one key, in a shard that is open.

    Attributes:
        shard: path of the tar.
        key: the members' common name, without extension.
        handle: the open tar.
        members: extension -> header of the member.
    """

    shard: Path
    key: str
    handle: IO[bytes]
    members: dict[str, tarfile.TarInfo]

    def where(self, extension: str) -> str:
        """A member's name in messages."""
        return f"{self.shard}: member {self.key}.{extension}"

    def picture(self) -> str | None:
        """The tar member with its picture, as `data.images` names it; None if it has no picture."""
        info = next((self.members[extension] for extension in EXTENSIONS if extension in self.members), None)
        return images.tar_member(self.shard.absolute(), info.offset_data, info.size) if info else None

    def text(self, extension: str) -> str:
        """A member's content as text."""
        info = self.members[extension]
        self.handle.seek(info.offset_data)
        try:
            return self.handle.read(info.size).decode()
        except UnicodeDecodeError as error:
            wrong = f"{error.object[error.start]:#04x} at {error.start}"
            raise DataError(f"{self.where(extension)}: not UTF-8 (byte {wrong}); convert it to UTF-8") from None

    def json(self) -> dict[str, Any]:
        """The content of the json member; empty if the sample has no json."""
        if "json" not in self.members:
            return {}
        try:
            content = json.loads(self.text("json"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.where('json')}: not JSON ({first_line(error)}); make the shard again") from None
        if not isinstance(content, dict):
            raise DataError(f"{self.where('json')}: a {type(content).__name__}, not an object; make the shard again")
        return content

    def field(self, facts: dict[str, Any], name: str) -> Any:
        """A field of the json; None if the sample has no json."""
        if name not in facts and "json" in self.members:
            there = ", ".join(facts) or "none"
            raise DataError(f"{self.where('json')}: it has no {name!r}; its fields are {there}")
        return facts.get(name)


def read(corpus: Corpus, source: Source) -> Content:
    """One row for each sample with a picture and a caption; the others are counted, and the counts are printed.

    Raises:
        RecipeError: an option is wrong.
        DataError: a shard is missing, compressed or damaged.
    """
    chosen = parse_options(corpus, Options)
    known = [*corpus.languages, *corpus.caption_languages]
    chosen.language = normalize_language(chosen.language) if chosen.language else corpus.languages[0]
    if chosen.language not in known:
        raise RecipeError(f"options of reader webdataset: language: {chosen.language}; there are {', '.join(known)}")
    shards = _shards(chosen.shards, source.root)
    source.used |= {*shards}
    return Content(_rows(shards, chosen, known))


def _shards(patterns: str | list[str], root: Path | None) -> list[Path]:
    """Every shard that matches a pattern, in the order of the patterns."""
    found: dict[Path, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for name in _expand(pattern):
            found |= dict.fromkeys(_matching(name, root, pattern))
    first: dict[str, Path] = {}
    for path in found:
        if path.suffix != ".tar":
            raise DataError(f"{path}: shards are uncompressed tars with names in .tar; decompress or rename it")
        if first.setdefault(path.stem, path) != path:
            raise DataError(f"{path}: {first[path.stem]} has the same name, and so would their pictures; rename one")
    return list(found)


def _expand(pattern: str) -> list[str]:
    try:
        from webdataset.shardlists import expand_urls  # imported here: it imports torch
    except ImportError:
        raise DataError("webdataset is not installed: pip install webdataset") from None
    try:
        names: list[str] = expand_urls(pattern)
    except (ValueError, AssertionError) as error:
        raise RecipeError(f"options of reader webdataset: shards: {pattern}: {first_line(error)}") from None
    return names


def _matching(name: str, root: Path | None, pattern: str) -> list[Path]:
    """The files that a pattern without braces matches."""
    path = Path(root or "", name)
    if path.is_file():
        return [path]
    if not glob.has_magic(name):
        raise DataError(f"{path}: this shard of {pattern} is missing; fetch it, or name only the shards that exist")
    found = [Path(root or "", match) for match in sorted(glob.glob(name, root_dir=root, recursive=True))]
    shards = [match for match in found if {".tar", ".tgz"} & set(match.suffixes) and match.is_file()]
    if not shards:
        raise DataError(f"{path}: no shard matches; shards have names like 00000.tar")
    return shards


def _rows(shards: list[Path], chosen: Options, known: list[str]) -> Iterator[Row]:
    left_out: Counter[str] = Counter()
    for shard in tqdm(shards, "reading shards", leave=False, unit="shard", dynamic_ncols=True):
        for sample in _read_shard(shard):
            row = _row(sample, chosen, known)
            if isinstance(row, Row):
                yield row
            else:
                left_out[row] += 1
    for why, count in left_out.items():
        tqdm.write(f"left out {count:,} samples {why}")


def _row(sample: Sample, chosen: Options, known: list[str]) -> Row | str:
    """A sample's row, or the reason why it is left out."""
    file = sample.picture()
    if file is None:
        return "without a picture"
    as_text = chosen.text == "txt" and "txt" in sample.members
    facts = {} if as_text and not chosen.language_field else sample.json()
    captions = [sample.text("txt")] if as_text else _captions(sample, facts, chosen.text)
    if not captions:
        return "without a caption"
    language = str(chosen.language)
    if chosen.language_field:
        language = normalize_language(str(sample.field(facts, chosen.language_field) or ""))
    if language not in known:
        return f"in {language or 'no language'}, which is not one of {', '.join(known)}"
    texts = [(language, caption) for caption in captions]
    return Row(split=chosen.split, texts=texts, image=f"{sample.shard.stem}/{sample.key}", file=file)


def _captions(sample: Sample, facts: dict[str, Any], text: str) -> list[str]:
    name = text.partition(":")[2]
    value = sample.field(facts, name) if name else facts.get("caption")
    captions = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(caption, str) for caption in captions):
        raise DataError(f"{sample.where('json')}: {name or 'caption'!r} is neither a text nor a list of texts")
    return captions


def _read_shard(shard: Path) -> Iterator[Sample]:
    tar: tarfile.TarFile | None = None
    try:
        with open(shard, "rb") as handle:
            head = handle.read(max(map(len, MAGIC)))
            packed = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None)
            if packed:
                raise DataError(
                    f"{shard}: compressed by {packed}, so its pictures cannot be read in place; decompress it"
                )
            handle.seek(0)
            with tarfile.open(fileobj=handle, mode="r:", encoding="utf-8", errors="strict") as tar:
                yield from _samples(shard, handle, tar)
    except BROKEN as error:
        read = tar.members if tar else []  # type: ignore[attr-defined]
        last = f" after member {read[-1].name!r}" if read else ""
        raise DataError(f"{shard}: not a whole tar{last} ({first_line(error)}); fetch it again") from None


def _samples(shard: Path, handle: IO[bytes], tar: tarfile.TarFile) -> Iterator[Sample]:
    from webdataset.tariterators import base_plus_ext

    sample, seen = None, set()
    for info in tar:
        _check_member(shard, info)
        key, extension = base_plus_ext(info.name.removeprefix("./"))
        if key is None or info.isdir():
            continue
        if sample is None or key != sample.key:
            if sample:
                yield sample
            if key in seen:
                raise DataError(
                    f"{shard}: member {info.name!r}: key {key!r} occurred before, with other keys between; sort the tar"
                )
            seen.add(key)
            sample = Sample(shard, key, handle, {})
        if sample.members.setdefault(extension.lower(), info) is not info:
            raise DataError(f"{shard}: member {info.name!r} occurs twice; make the shard again")
    _check_end(handle, tar)
    if sample:
        yield sample


def _check_member(shard: Path, info: tarfile.TarInfo) -> None:
    if info.size < 0:
        raise tarfile.ReadError(f"member {info.name!r} has {info.size} bytes")
    if info.name.startswith("/") or ".." in info.name.split("/"):
        raise DataError(f"{shard}: member {info.name!r}: points outside the tar; make the shard again")
    if not info.isdir() and (not info.isreg() or info.issparse()):
        raise DataError(f"{shard}: member {info.name!r}: a link, a device or sparse; make the shard with plain files")


def _check_end(handle: IO[bytes], tar: tarfile.TarFile) -> None:
    """Raise unless only zeros follow the last member: tarfile stops silently at a header that it cannot read."""
    handle.seek(tar.offset)
    rest = handle.read(1 << 20)
    if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):
        raise tarfile.ReadError(f"it ends early, or has other content, at byte {tar.offset:,}")

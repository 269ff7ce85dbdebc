"""Reads shards of webdataset, as img2dataset and clip-benchmark write them: tars of pictures with captions or classes.

Pictures are neither extracted nor copied: a row names the tar, the offset and the size (`data.images`).
"""

import glob
import re
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from mclip_kit.config.yaml import Section
from mclip_kit.data.corpora import Content, Corpus, Parts, Row, parse_options
from mclip_kit.data.corpora.account import Account
from mclip_kit.data.corpora.beside import JSON, LANGUAGES, Texts, choose, json_texts, split_of
from mclip_kit.data.corpora.shard import Sample, class_names, read_kinds, read_shard
from mclip_kit.data.corpora.source import Source
from mclip_kit.data.languages import TEACHER_LANGUAGE, normalize_language
from mclip_kit.errors import DataError, RecipeError, first_line
from mclip_kit.progress import tqdm
from mclip_kit.storage import exists, lacking_bucket, place, wildcards
from mclip_kit.urls import is_copy

BEFORE_NUMBER = re.compile(r"[-_.]?\d+$")
SMALL = 2**25  # bytes of shards that are read sooner without processes
NO_SPLIT = "(none)"
ALONE = "pictures alone: --set options.kind=gallery"


class Options(Section):
    """Options of this reader."""

    shards: str | list[str] = Field(
        description="Tars below --source, or below the current folder; {000..099} and wildcards (* ? **) are expanded."
    )
    split: str = Field("", description="Of all rows; empty: by folders train, val and test, else by `splits`.")
    text: Annotated[str, Field(pattern=r"^(txt|json:.+)$")] = Field(
        "txt",
        description="Where captions are: `txt` (in .txt, .de.txt, .caption; else in the json), or json:FIELD.",
    )
    lines: bool = Field(True, description="Each line of a text is a caption; false: the whole text is one.")
    language: str | None = Field(
        None, description="Of captions whose member names no language; None: the corpus's first language."
    )
    language_field: str | None = Field(None, description="The field of the json with the language of the captions.")
    kind: Literal["auto", "captions", "classes", "gallery"] = Field(
        "auto",
        description="`captions`; `classes`: by their number in .cls; `gallery`: pictures alone; `auto`: captions, and "
        "the class of a sample that has none.",
    )
    classes: Literal["names", "numbers"] = Field(
        "names", description="Classes are called by their lines in classnames.txt (or __classes), or by their numbers."
    )


def read(corpus: Corpus, source: Source) -> Content:
    """One row for each sample with a picture and captions or a class; the others are counted.

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
    parts = _parts(shards, chosen, known, source.account)
    return Content(parts.rows(source.account), parts=parts)


def _shards(patterns: str | list[str], root: Path | None) -> list[Path]:
    """Every shard that matches a pattern, in the order of the patterns."""
    found: dict[Path, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for name in _expand(pattern):
            found |= dict.fromkeys(_matching(name, root, pattern))
    for path in found:
        if path.suffix != ".tar":
            raise DataError(f"{path}: shards are uncompressed tars with names in .tar; decompress or rename it")
    return list(found)


def _names(shards: list[Path]) -> dict[Path, str]:
    """A name for each shard, for those of its pictures; with its folder's if others have the same: train/0, test/0."""
    names = {path: path.stem for path in shards}
    if len(set(names.values())) < len(names):
        names = {path: f"{path.absolute().parent.name}/{path.stem}" for path in shards}
    first: dict[str, Path] = {}
    for path, name in names.items():
        if first.setdefault(name, path) != path:
            raise DataError(f"{path}: {first[name]} has the same name, and so would their pictures; rename one")
    return names


def _splits(shards: list[Path]) -> dict[Path, str]:
    """The splits of shards that all lie in folders called train, val or test, or have names such as train-000.tar."""
    for name in (lambda path: path.absolute().parent.name, lambda path: BEFORE_NUMBER.sub("", path.stem)):
        found = {path: split_of(name(path)) for path in shards}
        if all(found.values()) and (len(set(found.values())) > 1 or name(shards[0]) == shards[0].parent.name):
            return {path: str(split) for path, split in found.items()}
    return {}


def _expand(pattern: str) -> list[str]:
    """The names that a pattern with braces stands for, as webdataset expands it."""
    try:
        from braceexpand import braceexpand  # what webdataset calls

        if "::" in pattern or "$" in pattern:  # several patterns, or variables of the environment
            from webdataset.shardlists import expand_urls  # imported here: it imports torch

            expanded = expand_urls(pattern)
        else:
            expanded = braceexpand(pattern)
    except ImportError:
        raise DataError("webdataset is not installed: pip install webdataset") from None
    except (ValueError, AssertionError) as error:
        raise RecipeError(f"options of reader webdataset: shards: {pattern}: {first_line(error)}") from None
    return list(expanded)


def _matching(name: str, root: Path | None, pattern: str) -> list[Path]:
    """The files that a pattern without braces matches."""
    path = (root or Path()) / place(name)
    if is_copy(path):
        return _objects(path, pattern)
    if path.is_file():
        return [path]
    if not glob.has_magic(name):
        if path.is_dir():
            raise DataError(f"{path}: a folder; name the shards in it: --webdataset '{path}/*.tar'")
        raise DataError(f"{path}: this shard of {pattern} is missing; fetch it, or name only the shards that exist")
    found = [Path(root or "", match) for match in sorted(glob.glob(name, root_dir=root, recursive=True))]
    shards = [match for match in found if {".tar", ".tgz"} & set(match.suffixes) and match.is_file()]
    if not shards:
        raise DataError(f"{path}: no shard matches; shards have names like 00000.tar")
    return shards


def _objects(path: Path, pattern: str) -> list[Path]:
    """The copies that a pattern without braces matches; they are brought when they are read."""
    found = wildcards(path) if glob.has_magic(str(path)) else [path] if exists(path) else []
    if not found:
        bucket = lacking_bucket(path)
        if bucket:
            raise DataError(f"{bucket}: there is no such bucket; correct its name, or check your access to it")
        raise DataError(f"{path}: there is no such shard of {pattern}; correct the name, or check your access to it")
    return found


def _parts(shards: list[Path], chosen: Options, known: list[str], account: Account) -> Parts:
    """A part for each shard."""
    names, splits = _names(shards), {} if chosen.split else _splits(shards)
    if splits:
        account.note(f"splits are those of the shards' names or folders: {', '.join(sorted(set(splits.values())))}")
    classes = class_names(shards) if chosen.classes == "names" else []
    if len(set(classes)) < len(classes):
        account.note("two classes have the same name, so classes are called by their numbers")
        classes = []
    items = [(shard, names[shard], chosen.split or splits.get(shard, "")) for shard in shards]
    small = not any(map(is_copy, shards)) and sum(shard.stat().st_size for shard in shards) < SMALL
    return Parts(
        tqdm(items, "reading shards", leave=False, unit="shard", dynamic_ncols=True),
        partial(_rows, chosen, known, classes),
        few=len(shards) if small or len(shards) == 1 else 0,
    )


def _rows(
    chosen: Options, known: list[str], classes: list[str], item: tuple[Path, str, str], account: Account
) -> Iterator[Row]:
    """The rows of a shard, given with its name and its split."""
    shard, name, split = item
    for number, sample in enumerate(read_shard(shard, account)):
        row = _row(sample, chosen, known, classes, account)
        if isinstance(row, Row):
            row.split, row.image = split, f"{name}/{sample.key}"
            yield row
        else:
            account.leave_out(row, f"{shard}: {sample.key}")
        if not number and not chosen.language_field:
            _name_language_field(sample, account)


def _row(sample: Sample, chosen: Options, known: list[str], classes: list[str], account: Account) -> Row | str:
    """A sample's row, or the reason why it is left out."""
    if not sample.pictures:
        return "samples without a picture"
    used, found = _texts(sample, chosen, known) if chosen.kind in ("auto", "captions") else ([], [])
    texts = [text for text in found if text[0] in known]
    label = None
    if "cls" in sample.members and chosen.kind in ("auto", "classes") and not found:
        used, label = [*used, "cls"], _class(sample, classes)
    if not texts and label is None and chosen.kind != "gallery":
        languages = ", ".join(dict.fromkeys(language or "no language" for language, _ in found))
        missing = "a class" if chosen.kind == "classes" else f"a caption or a class ({ALONE})"
        return (
            f"samples in {languages}, which is not one of {', '.join(known)}" if found else f"samples without {missing}"
        )
    wrong = sample.what_is_wrong()
    if wrong:
        return wrong
    for language, _ in found:
        if language not in known:
            account.ignore(f"captions in {language}, which is not one of {', '.join(known)}", sample.where("*"))
    for extension in sample.members:
        if extension not in (*used, sample.pictures[0]):
            account.ignore(f"members .{extension}", sample.where(extension))
    return Row(split="", texts=texts, image=sample.key, file=sample.picture(), stratum=label or "all")


def _texts(sample: Sample, chosen: Options, known: list[str]) -> tuple[list[str], Texts]:
    """The extensions of the members that are read, and the captions in them."""
    language, field = str(chosen.language), chosen.text.partition(":")[2]
    used = ["json"] if field or chosen.language_field else []
    facts = sample.json() if used else {}
    if chosen.language_field:
        language = normalize_language(str(sample.field(facts, chosen.language_field) or ""))
    if field:
        value = sample.field(facts, field)
        return used, _json_texts({"caption": value}, language, sample, field, "json")
    taken, _ = choose(sample.captions())
    found: Texts = []
    for file in taken:
        code = file.language or language
        if file.ending == JSON:
            texts = _json_texts(sample.json(file.name), code, sample, "caption", file.name, known)
            used += [file.name] if texts else []
        else:
            texts = [(code, text) for text in _captions(sample.text(file.name), chosen.lines)]
            used.append(file.name)
        found += [(language, text) for _, text in texts] if chosen.language_field and file.language is None else texts
    return used, found


def _captions(text: str, lines: bool) -> list[str]:
    """The captions in a text, as `File.lines` splits it; an empty text counts as one empty caption."""
    if not lines:
        return [text]
    return [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")]


def _json_texts(
    content: Any, language: str, sample: Sample, field: str, extension: str, known: Collection[str] = ()
) -> Texts:
    try:
        return json_texts(content, language, known)
    except ValueError:
        where = sample.where(extension)
        raise DataError(f"{where}: {field!r} is neither a text nor a list of texts; correct it") from None


def _class(sample: Sample, names: list[str]) -> str:
    """The class of a sample: the name of its number, or what its .cls says."""
    label = " ".join(sample.text("cls").split())
    if not names or not label.isdecimal():
        return label
    if int(label) >= len(names):
        raise DataError(
            f"{sample.where('cls')}: class {label}, but the list of class names has {len(names)}; correct the list, or "
            "take numbers: --set options.classes=numbers"
        )
    return names[int(label)].strip()


def _name_language_field(sample: Sample, account: Account) -> None:
    """Count the field of a json that may hold the language of captions, which are taken as the corpus's."""
    if "json" in sample.members and any(file.ending != JSON for file in choose(sample.captions())[0]):
        for name in sample.json():
            if name.lower() in LANGUAGES:
                account.ignore(
                    f"field {name} of the json (if it is the language of the captions: "
                    f"--set options.language_field={name} --langs CODES)",
                    sample.where("json"),
                )


def find_languages(shards: str, root: Path | None) -> list[str]:
    """The languages of the captions in shards that no declaration names, English first, or else English.

    They are read from the names of captions, and from the first json; all shards are read only if there are some.
    """
    found: set[str] = set()
    for shard in _shards(shards, root):
        for number, sample in enumerate(read_kinds(shard)):
            files = sample.captions()
            found |= {file.language or TEACHER_LANGUAGE for file in files if file.ending != JSON or file.language}
            if not number and [file.ending for file in files] == [JSON]:
                found |= {code for code, _ in _json_texts(sample.json(), TEACHER_LANGUAGE, sample, "caption", "json")}
        if not found - {TEACHER_LANGUAGE}:
            break
    return sorted(found or {TEACHER_LANGUAGE}, key=lambda code: (code != TEACHER_LANGUAGE, code))

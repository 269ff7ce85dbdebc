"""Reads a folder of pictures: with captions beside them, in a folder for each class as ImageNet is, or bare.

Captions lie in files of the picture's name (`beside.py`) or in a table `metadata.jsonl` (`metadata.py`). Folders called
train, val and test, with all pictures below them, are the splits.
"""

import json
import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from mclip_kit.config.yaml import Section
from mclip_kit.data.corpora import Content, Corpus, Row, parse_options
from mclip_kit.data.corpora.account import Account
from mclip_kit.data.corpora.beside import JSON, Beside, Texts, choose, json_texts
from mclip_kit.data.corpora.beside import split_of as split_named
from mclip_kit.data.corpora.metadata import Described, read_metadata
from mclip_kit.data.corpora.source import File, Source
from mclip_kit.data.corpora.tree import Tree, read_tree, split_folders
from mclip_kit.data.images import SUFFIXES
from mclip_kit.data.languages import TEACHER_LANGUAGE, normalize_language
from mclip_kit.errors import DataError, RecipeError, first_line
from mclip_kit.storage import fetch

NAMED = 10  # classes that a note names


class Options(Section):
    """Options of this reader."""

    split: str = Field("", description="Of all rows; empty: by folders train, val and test, else by `splits`.")
    language: str | None = Field(
        None, description="Of captions whose file names no language; None: the corpus's first language."
    )
    kind: Literal["auto", "captions", "classes", "gallery"] = Field(
        "auto",
        description="`captions`: files with the pictures' names, or metadata.jsonl, have captions; `classes`: a folder "
        "for each class; `gallery`: pictures without captions; `auto`: the first of the three that fits.",
    )
    check: bool = Field(True, description="Open each picture, and leave out what is none.")


@dataclass(frozen=True)
class Captioned:
    """Gives the captions of the pictures in a folder; what is not read is counted.

    Attributes:
        tree: what the folder holds.
        described: picture -> what the tables with metadata say of it.
        language: of captions that name none.
        known: the wanted languages.
    """

    tree: Tree
    described: dict[str, Described]
    language: str
    known: Collection[str] = ()

    def any(self) -> bool:
        """Whether a picture has captions; files of JSON are opened, as many have none."""
        if any(found.texts for found in self.described.values()):
            return True
        files = [file for found in self.tree.beside.values() for file in found]
        return any(file.ending != JSON for file in files) or any(self._read(file) for file in files)

    def texts(self, picture: str, account: Account) -> Texts:
        """A picture's captions, from a table or else from the files beside it."""
        files = self.tree.beside.get(picture, [])
        listed = self.described.get(picture, Described()).texts
        taken, others = ([], files) if listed else choose(files)
        found = list(listed)
        for file in taken:
            read = self._read(file)
            found += read
            others = others if read else [*others, file]
        for file in others:
            why = "captions are read from elsewhere" if found else "no caption in them"
            account.ignore(f"{file.ending} files beside a picture ({why})", self.tree.root / file.name)
        return found

    def _read(self, file: Beside) -> Texts:
        opened, language = File(self.tree.root / file.name), file.language or self.language
        if file.ending != JSON:
            lines = list(opened.lines()) or [""]  # an empty file counts as one empty text
            return [(language, line) for line in lines]
        try:
            return json_texts(json.loads("\n".join(opened.lines())), language, self.known)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{opened}: no JSON with captions ({first_line(error)}); correct or remove it") from None


def read(corpus: Corpus, source: Source) -> Content:
    """One row for each picture, sorted by name, so that the order is the same on every system.

    Raises:
        DataError: there are no pictures, or they are not laid out as the option `kind` says.
    """
    chosen = parse_options(corpus, Options)
    root = source.root or source.images
    if root is None or not fetch(root).is_dir():
        raise DataError(f"{root or 'the source'}: the folder of the pictures is needed, unpacked; {corpus.obtain}")
    language = normalize_language(chosen.language) if chosen.language else corpus.languages[0]
    known = [*corpus.languages, *corpus.caption_languages]
    if language not in known:
        raise RecipeError(f"options of reader folder: language: {language}; there are {', '.join(known)}")
    tree = read_tree(root, source.account, chosen.check)
    if not tree.pictures:
        broken = "".join(f"; {line}" for line in Account.lines(source.account.as_json())[:2])
        raise DataError(f"{root}: no pictures in it ({', '.join(sorted(SUFFIXES))}){broken}; {corpus.obtain}")
    return Content(_rows(tree, chosen, language, known, corpus.obtain, source.account))


def _rows(tree: Tree, chosen: Options, language: str, known: list[str], obtain: str, account: Account) -> Iterator[Row]:
    captioned = Captioned(tree, read_metadata(tree, language, account, known), language, known)
    has_captions = chosen.kind in ("auto", "captions") and captioned.any()
    if chosen.kind == "captions" and not has_captions:
        wanted = f"{os.path.splitext(tree.pictures[0])[0]}.txt"
        raise DataError(f"{tree.root}: no picture has a caption in a .txt of its name, such as {wanted}; {obtain}")
    depth, splits = (0, {}) if chosen.split else split_folders(tree.pictures)
    split_of = {name: chosen.split or splits.get(_part(name, depth), "") for name in tree.pictures}
    if splits:
        account.note(f"splits are those of the folders {', '.join(splits)}")
    elif not chosen.split:
        _name_half_splits(tree.pictures, account)
    if has_captions:
        yield from _captions(captioned, split_of, known, account)
        return
    for picture, files in tree.beside.items():
        for file in files:
            account.ignore(f"{file.ending} files beside a picture (kind: {chosen.kind})", f"{tree.root / picture}")
    yield from _without_captions(tree, chosen.kind, split_of, depth + 1 if splits else 0, account)


def _name_half_splits(pictures: list[str], account: Account) -> None:
    """Say that folders such as train and test are not taken as splits, because pictures lie in neither."""
    tops = {name.partition("/")[0] if "/" in name else "" for name in pictures}
    named = sorted(top for top in tops if split_named(top))
    if len({split_named(top) for top in named}) > 1:
        outside = next(name for name in pictures if name.partition("/")[0] not in named)
        account.note(f"folders {', '.join(named)} are not taken as splits, as {outside} is in none of them")


def _part(name: str, depth: int) -> str:
    return name.split("/")[depth]


def _captions(captioned: Captioned, split_of: dict[str, str], known: list[str], account: Account) -> Iterator[Row]:
    for name, split in split_of.items():
        path, found = captioned.tree.root / name, captioned.texts(name, account)
        texts = [text for text in found if text[0] in known]
        for language, _ in found:
            if language not in known:
                account.ignore(f"captions in {language}, which is not one of {', '.join(known)}", path)
        if texts:
            own = captioned.described.get(name, Described()).split
            yield Row(split=split or own, texts=texts, image=name, file=str(path.absolute()))
        else:
            account.leave_out(f"pictures without a caption{' in ' + ', '.join(known) if found else ''}", path)


def _without_captions(tree: Tree, kind: str, split_of: dict[str, str], start: int, account: Account) -> Iterator[Row]:
    """Rows of pictures in class folders, which must all be in the same parent folder, at any depth; or of a gallery.

    Args:
        split_of: picture -> split.
        start: number of folders at the start of a picture's name that are above the classes, as those of the splits.
    """
    inner = {name: "/".join(name.split("/")[start:]) for name in tree.pictures}
    one_folder = len({os.path.dirname(name) for name in inner.values()}) == 1
    if kind == "classes" and one_folder:
        raise DataError(
            f"{tree.root / os.path.dirname(tree.pictures[0])}: holds all pictures; sort them into a folder for each "
            "class, or prepare them without classes: --set options.kind=gallery"
        )
    if kind == "gallery" or one_folder:
        account.note(f"no captions and no classes: a gallery of {len(inner):,} pictures")
        for name, split in split_of.items():
            yield Row(split=split, texts=[], image=name, file=str((tree.root / name).absolute()))
        return
    _check_classes(tree.root, inner)
    classes = sorted({_class(name) for name in inner.values()})
    more = f" and {len(classes) - NAMED:,} more" if len(classes) > NAMED else ""
    account.note(f"no captions beside; {len(classes):,} classes: {', '.join(classes[:NAMED])}{more}")
    for name, split in split_of.items():
        stratum = _class(inner[name])
        image = name if start else f"{stratum}/{os.path.basename(name)}"
        yield Row(split=split, texts=[], image=image, file=str((tree.root / name).absolute()), stratum=stratum)


def _class(name: str) -> str:
    return os.path.basename(os.path.dirname(name))


def _check_classes(root: Path, inner: dict[str, str]) -> None:
    """Raise unless every picture is in a class folder, and these are in one parent folder."""
    above = Counter(os.path.dirname(os.path.dirname(name)) for name in inner.values() if "/" in name)
    base = above.most_common(1)[0][0] if above else ""
    outside = (n for n, short in inner.items() if "/" not in short or os.path.dirname(os.path.dirname(short)) != base)
    wrong = next(outside, None)
    if wrong is not None:
        raise DataError(
            f"{root / wrong}: a picture outside the class folders of {root / base}; move it away, give the folder that "
            "has only class folders, or prepare all pictures without classes: --set options.kind=gallery"
        )


def find_languages(root: Path) -> list[str]:
    """The languages of a folder's captions, English first, or else English: for a folder that no declaration names."""
    tree = read_tree(fetch(root), Account(), check=False)
    described = read_metadata(tree, TEACHER_LANGUAGE, Account())
    captioned = Captioned(tree, described, TEACHER_LANGUAGE)
    found = {language for known in described.values() for language, _ in known.texts}
    named = [file for files in tree.beside.values() for file in files if file.ending != JSON or file.language]
    found |= {file.language or TEACHER_LANGUAGE for file in named}
    alone = next((files[0] for files in tree.beside.values() if [file.ending for file in files] == [JSON]), None)
    found |= {language for language, _ in captioned._read(alone)} if alone else set()
    return sorted(found or {TEACHER_LANGUAGE}, key=lambda code: (code != TEACHER_LANGUAGE, code))

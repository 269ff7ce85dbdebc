"""What a folder has that training needs: captioned pictures, parallel text, a CLIP, an encoder. Nothing is changed."""

import os
import re
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from mclip_kit.data.corpora.account import Account
from mclip_kit.data.corpora.beside import split_of
from mclip_kit.data.corpora.folder import Captioned
from mclip_kit.data.corpora.metadata import read_metadata
from mclip_kit.data.corpora.records import ENDINGS
from mclip_kit.data.corpora.tree import METADATA, Tree, read_tree
from mclip_kit.data.languages import DOUBTFUL, TEACHER_LANGUAGE, is_language, normalize_language
from mclip_kit.data.prepare.adhoc import declare
from mclip_kit.doctor.found import ODD, Data, Found, teacher_first
from mclip_kit.doctor.units import note_unit
from mclip_kit.doctor.walk import Folder, has_odd_characters, walk
from mclip_kit.errors import MclipError
from mclip_kit.layout import BITEXT, CLIP, ENCODER
from mclip_kit.progress import SOON, tqdm

PARALLEL = re.compile(
    r"(?s)(?P<head>.*?)(?P<mark>^|[._-])(?P<language>[A-Za-z]{2,3}([-_][A-Za-z]{2,4})?)(?P<tail>(\.txt)?(\.gz|\.xz|\.bz2)?)"
)
"""The name of one language's file of parallel text: train.de, news-de.txt.gz, de.txt."""
TEXT_TABLE = re.compile(rb"(image(_name)?|file_?name)\s*[,;|\t]|\S+\.(jpe?g|png)#\d+[\t ]", re.IGNORECASE)
"""The start of a text file that is a table: its columns, or NAME.jpg#0 and a caption."""
SHARD = re.compile(r"(?P<head>.*?)\d+\.tar")
COUNTED = 1 << 20  # bytes of a file whose lines are counted; the rest is estimated


def discover(root: Path) -> Found:
    """Look through a folder, see `walk`; what cannot be read is among the others."""
    found = Found()
    walked = walk(root, lambda path, names: note_unit(path, names, found), found.others)
    folders = list(tqdm(walked, "looking", leave=False, unit=" folders"))
    holding = [place.path for place in folders if place.pictures()]
    for place in tqdm(folders, "reading", leave=False, unit=" folders", delay=SOON):
        _shards(place, found)
        _tables(place, holding, found)
        _parallel(place, found)
    _pictures(root, holding, found)
    found.clips += [f"local-dir:{Path(model, CLIP)}" for model in found.models]
    found.encoders += [f"hf:{Path(model, ENCODER)}" for model in found.models]
    for kind in (found.clips, found.encoders):
        found.others += [f"{name}: {ODD}" for name in kind if has_odd_characters(name)]
        kind[:] = [name for name in kind if not has_odd_characters(name)]
    found.data.sort(key=lambda data: (bool(data.words), _is_held_out(data), -data.rows))
    return found


def _is_held_out(data: Data) -> bool:
    """Whether files that are not prepared yet are called after a validation or test split."""
    name = Path(data.words[1].rpartition("=")[2]).name if data.words else ""
    return any(split_of(part) in ("valid", "test") for part in re.split("[._-]", name))


def _declared(
    found: Found,
    what: str,
    kind: str | None,
    words: tuple[str, ...],
    rows: int,
    holding: Sequence[Path] = (),
    **files: Any,
) -> None:
    """Add files as `mclip-kit prepare` would read them; if it would not, they are among the others."""
    given = {"files": [], "table": None, "shards": None, "folder": None, "languages": [], **files}
    if any(map(has_odd_characters, words)):
        found.others.append(f"{what}: {ODD}")
        return
    try:
        name, tree = declare(**given)
    except MclipError as error:
        found.others.append(f"{shlex.join(['mclip-kit', 'prepare', *words])} would say: {error}")
        return
    options = tree["options"]
    kind = kind or ("captions" if options.get("image") or options.get("captions") else "bitext")
    if kind == "captions" and given["table"] and not options.get("content"):
        words += _pictures_of(given["table"].parent, holding)
    folder = f"data/{name}"
    if any(not data.words and Path(data.folder) in (Path(folder), Path(folder, BITEXT)) for data in found.data):
        return  # prepared before
    taken = {data.folder.removesuffix(f"/{BITEXT}") for data in found.data if data.words}
    if folder in taken:
        folder = next(f"{folder}_{number}" for number in range(2, 10**6) if f"{folder}_{number}" not in taken)
    languages = list(map(str, tree["languages"]))
    place = folder if kind == "captions" else f"{folder}/{BITEXT}"
    found.data.append(Data(what, kind, languages, place, (*words, "--out", folder), rows))


def _pictures_of(place: Path, holding: Sequence[Path]) -> tuple[str, ...]:
    """The words that say where the pictures of a table are, if none are in its folder or below."""
    if not holding or any(folder.is_relative_to(place) for folder in holding):
        return ()
    return ("--images", os.path.commonpath(holding))


def _tables(place: Folder, holding: Sequence[Path], found: Found) -> None:
    """Tables; a metadata.jsonl beside pictures belongs to their folder, and a .json to the picture of its name."""
    pictures = {os.path.splitext(name)[0] for name in place.pictures()}
    for name in place.names:
        path, known = place.path / name, name.lower().endswith(tuple(ENDINGS))
        of_pictures = bool(pictures) and (name.lower() in METADATA or _is_beside(name, pictures))
        if not of_pictures and (known or _is_text_table(path)):
            _declared(found, f"{path}: a table", None, ("--pairs", str(path)), _lines(path), holding, table=path)


def _is_beside(name: str, pictures: Collection[str]) -> bool:
    """Whether a file is the caption of a picture; `pictures` are their names without endings."""
    stem, ending = os.path.splitext(name)
    return ending in (".txt", ".json") and (stem in pictures or os.path.splitext(stem)[0] in pictures)


def _is_text_table(path: Path) -> bool:
    """Whether a text file is a table by its first line, as Flickr8k's captions.txt and Flickr30k's .token are."""
    if path.suffix not in (".txt", ".token"):
        return False
    try:
        with open(path, "rb") as handle:
            return bool(TEXT_TABLE.match(handle.readline(1000)))
    except OSError:
        return False


def _lines(path: Path) -> int:
    """About how many lines a text file has; 0 of other files, and of those that cannot be read."""
    if path.suffix.lower() == ".parquet":
        return _parquet_rows(path)
    if path.suffix.lower() in (".xlsx", ".gz", ".xz", ".bz2"):
        return 0
    try:
        size = path.stat().st_size
        with open(path, "rb") as handle:
            part = handle.read(COUNTED)
    except OSError:
        return 0
    return round(part.count(b"\n") * max(1.0, size / max(1, len(part))))


def _parquet_rows(path: Path) -> int:
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, ValueError):  # a broken one is refused when its columns are read
        return 0


def _shards(place: Folder, found: Found) -> None:
    heads = dict.fromkeys(match["head"] for name in place.names if (match := SHARD.fullmatch(name)))
    for head in heads:
        pattern = str(place.path / f"{head}*.tar")
        what = f"{pattern}: shards of pictures"
        _declared(found, what, "captions", ("--webdataset", pattern), 0, shards=pattern)


def _parallel(place: Folder, found: Found) -> None:
    """Files whose names differ in a language's code alone; not beside pictures, whose captions such files are."""
    if place.pictures():
        return
    groups: dict[tuple[str, ...], dict[str, str]] = {}
    for name in place.names:
        match = PARALLEL.fullmatch(name)
        if match and is_language(match["language"]) and not name.lower().endswith(tuple(ENDINGS)):
            code = normalize_language(match["language"])
            files = groups.setdefault((match["head"], match["mark"], match["tail"]), {})
            if code in files:
                found.others.append(f"{place.path / name}: in the same language as {files[code]}; not in the recipe")
            elif code not in DOUBTFUL or match["tail"]:
                files[code] = str(place.path / name)
    for files in groups.values():
        if len(files) > 1:
            languages = teacher_first(files)
            named = [f"{code}={files[code]}" for code in languages]
            what = f"{', '.join(files[code] for code in languages)}: parallel text"
            _declared(found, what, "bitext", ("--bitext", *named), _lines(Path(files[languages[0]])), files=named)


def _pictures(root: Path, holding: list[Path], found: Found) -> None:
    """Pictures that no table captions: each topmost folder that has some, with captions beside them or without."""
    tops = [path for path in holding if not any(other in path.parents for other in holding)]
    tops = _class_parents(root, tops)
    captioned = found.first("captions") is not None  # by a table, or prepared
    for path in tops:
        try:
            tree = read_tree(path, Account(), check=False)
        except MclipError as error:
            found.others.append(str(error))
            continue
        if _has_captions(tree):
            what = f"{path}: {len(tree.pictures):,} pictures with captions beside them"
            _declared(found, what, "captions", ("--folder", str(path)), len(tree.pictures), folder=path)
        elif not captioned:
            found.others.append(
                f"{path}: {len(tree.pictures):,} pictures without captions; a model can search them (mclip-kit embed), "
                "and training needs captions: a table with columns image and caption, or a .txt beside each picture"
            )


def _class_parents(root: Path, tops: list[Path]) -> list[Path]:
    """Sibling folders of pictures (classes, or train and val) as their parent; the root only if they are splits."""
    splits = {split_of(path.name) for path in tops if path.parent == root} - {None}
    inside = [path.parent != root or (len(splits) > 1 and split_of(path.name)) for path in tops]
    parents = [path.parent if own and path != root else path for own, path in zip(inside, tops, strict=True)]
    return [path for path in dict.fromkeys(parents) if not any(other in path.parents for other in parents)]


def _has_captions(tree: Tree) -> bool:
    try:
        return Captioned(tree, read_metadata(tree, TEACHER_LANGUAGE, Account()), TEACHER_LANGUAGE).any()
    except MclipError:
        return False

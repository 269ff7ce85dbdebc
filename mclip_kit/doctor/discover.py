"""What a folder has that training needs: captioned pictures, parallel text, a CLIP, an encoder. Nothing is changed."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mclip_kit.data.corpora import CODE
from mclip_kit.data.corpora.account import Account
from mclip_kit.data.corpora.folder import Captioned
from mclip_kit.data.corpora.metadata import read_metadata
from mclip_kit.data.corpora.records import ENDINGS
from mclip_kit.data.corpora.tree import METADATA, Tree, read_tree
from mclip_kit.data.languages import DOUBTFUL, TEACHER_LANGUAGE, is_language, normalize_language
from mclip_kit.data.prepare.adhoc import declare
from mclip_kit.doctor.walk import Folder, has_odd_characters, walk
from mclip_kit.errors import MALFORMED, MclipError, first_line
from mclip_kit.layout import BITEXT, CLIP, ENCODER, MANIFEST, MODEL_CONFIG, PROJECTOR
from mclip_kit.progress import SOON, tqdm

PARALLEL = re.compile(
    r"(?s)(?P<head>.*?)(?P<mark>^|[._-])(?P<language>[A-Za-z]{2,3}([-_][A-Za-z]{2,4})?)(?P<tail>(\.txt)?(\.gz|\.xz|\.bz2)?)"
)
"""The name of one language's file of parallel text: train.de, news-de.txt.gz, de.txt."""
SHARD = re.compile(r"(?P<head>.*?)\d+\.tar")
ENCODERS = {"xlm-roberta", "xlm-roberta-xl", "bert", "roberta", "distilbert"}
"""Values of `model_type` of transformers folders that `encoder: hf:DIR` takes."""
ODD = "its path has control characters or is not UTF-8; rename it"
COUNTED = 1 << 20  # bytes of a file whose lines are counted; the rest is estimated


@dataclass(frozen=True)
class Data:
    """Rows to train on.

    Attributes:
        what: for people.
        kind: `captions` or `bitext`.
        languages: codes, the teacher's first.
        folder: where they are prepared, or will be.
        words: words after `mclip-kit prepare`; none: they are prepared.
        rows: about how many there are; 0: unknown.
    """

    what: str
    kind: str
    languages: list[str]
    folder: str
    words: tuple[str, ...] = ()
    rows: int = 0


@dataclass
class Found:
    """What a folder has.

    Attributes:
        data: rows to train on, prepared ones first.
        clips: values of a recipe's `teacher.model`.
        encoders: values of a recipe's `encoder`.
        others: what looked like one of these and is not taken, with the reason.
    """

    data: list[Data] = field(default_factory=list)
    clips: list[str] = field(default_factory=list)
    encoders: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def first(self, kind: str) -> Data | None:
        """The first rows of a kind."""
        return next((data for data in self.data if data.kind == kind), None)


def discover(root: Path) -> Found:
    """Look through a folder, `DEPTH` folders deep; what cannot be read is among the others."""
    found = Found()
    walked = walk(root, lambda path, names: _note_unit(path, names, found), found.others)
    folders = list(tqdm(walked, "looking", leave=False, unit=" folders"))
    holding = [place.path for place in folders if place.pictures()]
    for place in tqdm(folders, "reading", leave=False, unit=" folders", delay=SOON):
        _shards(place, found)
        _tables(place, holding, found)
        _parallel(place, found)
    _pictures(root, holding, found)
    for kind in (found.clips, found.encoders):
        found.others += [f"{name}: {ODD}" for name in kind if has_odd_characters(name)]
        kind[:] = [name for name in kind if not has_odd_characters(name)]
    found.data.sort(key=lambda data: (bool(data.words), -data.rows))
    return found


def _note_unit(path: Path, names: set[str], found: Found) -> bool:
    """Note a folder that is a prepared one, a model, a CLIP or an encoder."""
    if MANIFEST in names and _prepared(path, found):
        return True
    if PROJECTOR in names and MODEL_CONFIG in names:
        found.others.append(f"{path}: a multilingual CLIP; its parts are local-dir:{path / CLIP}, hf:{path / ENCODER}")
    elif "open_clip_config.json" in names:
        found.clips.append(f"local-dir:{path}")
    elif "config.json" in names and (kind := _model_type(path / "config.json")):
        if kind in ENCODERS:
            found.encoders.append(f"hf:{path}")
        elif kind == "altclip":
            found.others.append(f"{path}: an AltCLIP; mclip-kit import altclip {path} makes it a model folder")
        else:
            found.others.append(f"{path}: a model of kind {kind}; teacher.model takes open_clip's folders")
    else:
        return False
    return True


def _model_type(path: Path) -> str | None:
    """The `model_type` of a transformers folder; None: it is another folder."""
    try:
        kind = json.loads(path.read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    return kind if isinstance(kind, str) else None


def _prepared(path: Path, found: Found) -> bool:
    """Note a prepared folder; False: its manifest is that of another program."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        if isinstance(manifest, dict) and "counts" not in manifest:
            return False
        found.data += (data := _rows_of(path, manifest["counts"]))
        if not data:
            found.others.append(f"{path}: prepared, and has no rows to train on")
    except (OSError, *MALFORMED) as error:
        found.others.append(f"{path / MANIFEST}: damaged ({first_line(error)}); prepare the corpus again")
    return True


def _rows_of(path: Path, counts: dict[str, Any]) -> list[Data]:
    """What a prepared folder has to train on; its counts are those of its manifest."""
    captions, pairs = (dict(counts[key].get("train", {})) for key in ("captions", "sentence_pairs"))
    spoken = [language for pair in pairs for language in pair.split("-")]
    kinds = (
        [("captions", list(captions), captions, path)] if counts["images"] > counts.get("missing_pictures", 0) else []
    )
    if has_odd_characters(str(path)) or not all(CODE.fullmatch(code) for code in [*captions, *spoken]):
        raise ValueError("its path or its languages have characters that a recipe cannot hold")
    return [
        Data(f"{path}: prepared", kind, _teacher_first(languages), str(folder), rows=int(sum(rows.values())))
        for kind, languages, rows, folder in [*kinds, ("bitext", spoken, pairs, path / BITEXT)]
        if rows
    ]


def _teacher_first(languages: Iterable[str]) -> list[str]:
    return sorted(set(languages), key=lambda code: (code != TEACHER_LANGUAGE, code))


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
        found.others.append(str(error))
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
        of_pictures = name.lower() in METADATA if pictures else False
        if name.lower().endswith(tuple(ENDINGS)) and not of_pictures and name.removesuffix(".json") not in pictures:
            path = place.path / name
            _declared(found, f"{path}: a table", None, ("--pairs", str(path)), _lines(path), holding, table=path)


def _lines(path: Path) -> int:
    """About how many lines a text file has; 0 of other files, and of those that cannot be read."""
    if path.suffix.lower() in (".parquet", ".xlsx", ".gz", ".xz", ".bz2"):
        return 0
    try:
        size = path.stat().st_size
        with open(path, "rb") as handle:
            part = handle.read(COUNTED)
    except OSError:
        return 0
    return round(part.count(b"\n") * max(1.0, size / max(1, len(part))))


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
            languages = _teacher_first(files)
            named = [f"{code}={files[code]}" for code in languages]
            what = f"{', '.join(files[code] for code in languages)}: parallel text"
            _declared(found, what, "bitext", ("--bitext", *named), _lines(Path(files[languages[0]])), files=named)


def _pictures(root: Path, holding: list[Path], found: Found) -> None:
    """Pictures that no table captions: each topmost folder that has some, with captions beside them or without."""
    tops = [path for path in holding if not any(other in path.parents for other in holding)]
    tops = _class_parents(root, tops)
    captioned = any(data.kind == "captions" and "--pairs" in data.words for data in found.data)
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
    """Sibling folders of pictures (classes, or train and val) as their parent folder, unless that is the root."""
    parents = [path.parent if path != root and path.parent != root else path for path in tops]
    return list(dict.fromkeys(parents))


def _has_captions(tree: Tree) -> bool:
    try:
        return Captioned(tree, read_metadata(tree, TEACHER_LANGUAGE, Account()), TEACHER_LANGUAGE).any()
    except MclipError:
        return False

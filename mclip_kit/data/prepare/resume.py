"""Whether a folder already holds what is wanted, and what an interrupted preparation left to continue from.

While a folder is being built, its `read.json` holds the progress: what was wanted, the source's files, the counts, the
pairs of the bitext, and how many of them are done. It is written when the tables are whole.
"""

import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mclip_kit.data.bitext import raw_text
from mclip_kit.data.corpora import Corpus
from mclip_kit.data.corpora.source import Source
from mclip_kit.data.manifest import file_stamps
from mclip_kit.data.prepare.parallel_text import side_prefixes
from mclip_kit.errors import MALFORMED, DataError
from mclip_kit.files import flush, hash_files, move, other_out
from mclip_kit.layout import (
    BITEXT,
    CAPTIONS,
    CAPTIONS_TABLE,
    FINGERPRINTS,
    IMAGES,
    IMAGES_ARRAY,
    IMAGES_TABLE,
    MANIFEST,
    PICTURES_TAR,
    UNCAPTIONED,
    UNCAPTIONED_TABLE,
)
from mclip_kit.storage import exists, fetch, forget, listing, place
from mclip_kit.urls import is_copy, named, values_with_urls

PROGRESS = "read.json"
OWN = (MANIFEST, IMAGES_ARRAY, IMAGES, CAPTIONS, UNCAPTIONED, BITEXT, FINGERPRINTS, PICTURES_TAR)
OWN_BEFORE = (IMAGES_TABLE, CAPTIONS_TABLE, UNCAPTIONED_TABLE)  # of earlier versions
"""What is at the top of a prepared folder, besides what a user puts there."""
REPLACE = "replace it with --again, or choose another --out"

Progress = dict[str, Any]
"""The content of `read.json`."""


def describe_wanted(corpus: Corpus, spm: Path | None, source: Source) -> dict[str, Any]:
    """The part of a manifest that identifies a preparation: two preparations are the same if it is equal."""
    places = [named(path.resolve()) if path else None for path in (source.root, source.images)]
    return {
        "corpus": values_with_urls(corpus.model_dump(mode="json")),
        "spm": hash_files([fetch(spm)])[0] if spm else None,
        "source": places[0],
        "pictures": places[1],
    }


PROSE = (
    "about",
    "obtain",
    "size",
    "notes",
    "overlaps",
    "licences",
)  # of a declaration: other words, but the same corpus


def _without_prose(wanted: dict[str, Any]) -> dict[str, Any]:
    declared = wanted.get("corpus")
    with suppress(ValidationError):  # a folder of an earlier version lacks the keys that are new; it had their defaults
        declared = Corpus.model_validate(declared).model_dump(mode="json")
    kept = {k: v for k, v in declared.items() if k not in PROSE} if isinstance(declared, dict) else declared
    return {**wanted, "corpus": kept}


def check_prepared(out: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a folder that exists.

    Raises:
        DataError: it is not the wanted preparation, it is incomplete, or its source has changed.
    """
    try:
        manifest: dict[str, Any] = json.loads(fetch(out / MANIFEST).read_text(encoding="utf-8"))
        found = {key: manifest.get(key) for key in wanted}
    except (OSError, *MALFORMED):
        raise DataError(f"{out}: exists and is not a prepared corpus; {other_out(out)}") from None
    if _without_prose(found) != _without_prose(wanted):
        raise DataError(f"{out}: prepared from another declaration or source; {REPLACE}")
    try:
        known, files = dict(manifest.get("sources", {})), list(manifest["files"])
        there = [path for path in map(place, known) if exists(path)]  # others may have been removed
        sources = file_stamps(there)
        whole = listing(out) if is_copy(out) else {name for name in files if (out / name).is_file()}
        lost = next((out / name for name in files if name not in whole), None)
    except MALFORMED:
        raise DataError(f"{out / MANIFEST}: damaged; {REPLACE}") from None
    for path, stamp in sources.items():
        if stamp != known[path]:
            raise DataError(f"{path}: has changed since {out} was prepared; {REPLACE}")
    if lost:
        raise DataError(f"{lost}: missing; {REPLACE}")
    return manifest


def check_replaceable(out: Path) -> None:
    """Check that a folder holds what `prepare` wrote and nothing else, so that another may take its place.

    Raises:
        DataError: it is something else, or somebody has put files into it.
    """
    if out.is_symlink():
        raise DataError(f"{out}: a link to a folder; give the folder itself: --out {out.resolve()}")
    if not fetch(out / MANIFEST).is_file():
        raise DataError(f"{out}: exists and is not a prepared corpus; {other_out(out)}")
    written = None  # all that has the names of its files, if the manifest is damaged
    with suppress(OSError, *MALFORMED):
        written = {MANIFEST, *dict(json.loads((out / MANIFEST).read_text(encoding="utf-8"))["files"])}
    names = sorted(
        listing(out)
        if is_copy(out)
        else (str(path.relative_to(out)) for path in out.rglob("*") if not path.is_dir() or path.is_symlink())
    )
    ours = [
        name for name in names if name.split("/")[0] in (*OWN, *OWN_BEFORE) and (written is None or name in written)
    ]
    others = sorted({*names} - {*ours})
    if others:
        more = f" and {len(others) - 1:,} more" if len(others) > 1 else ""
        raise DataError(f"{out / others[0]}{more}: not written by prepare; move it elsewhere, or choose another --out")


def check_sources(out: Path, sources: Iterable[str]) -> None:
    """Check that no file that was read is in a folder that is about to be replaced: it would be lost.

    Raises:
        DataError: one is.
    """
    inside = next((path for path in sources if place(path).resolve().is_relative_to(out.resolve())), None)
    if inside:
        raise DataError(f"{inside}: a source, in the folder that --again replaces; choose another --out")


def replace_folder(new: Path, out: Path) -> None:
    """Give a whole new folder the name of one that exists, which is removed; an interruption leaves one of them."""
    if is_copy(out):
        forget(out / MANIFEST)  # first: it makes the old one whole
        forget(out)
        shutil.rmtree(out, ignore_errors=True)
        move(new, out)
        return
    _remove_old(out)
    flush(new)  # first, so that a disk that fails changes no name
    out.rename(_old(out))
    new.rename(out)
    _remove_old(out)


def put_back(out: Path) -> None:
    """Finish, or undo, what was interrupted in `replace_folder`.

    Raises:
        DataError: what has the name of the replaced folder is something else.
    """
    if os.path.lexists(out):
        _remove_old(out)
    elif os.path.lexists(_old(out)):
        check_replaceable(_old(out))
        _old(out).rename(out)


def _remove_old(out: Path) -> None:
    """Remove the folder that was replaced, its manifest last: by that it is known after an interruption, too."""
    old = _old(out)
    if not os.path.lexists(old):
        return
    if old.is_symlink() or not old.is_dir() or os.listdir(old):
        check_replaceable(old)
    for path in old.iterdir() if old.is_dir() else ():
        if path.name != MANIFEST:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    shutil.rmtree(old)


def _old(out: Path) -> Path:
    return out.with_name(f".{out.name}.old")


def part_of(out: Path) -> Path:
    """Where a folder is until it is whole.

    Raises:
        DataError: the folder has no name, such as `.`.
    """
    if out.name in ("", ".."):
        raise DataError(f"{out}: give the folder's name, and from outside of it: --out {out.resolve()}")
    return out.with_name(f".{out.name}.part")


def resume(folder: Path, wanted: dict[str, Any]) -> Progress | None:
    """The progress of an interrupted preparation, if it was the wanted one and its source has not changed.

    Otherwise the folder is emptied, and the result is None.
    """
    with suppress(OSError, *MALFORMED):
        progress: Progress = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        same = _without_prose(progress["wanted"]) == _without_prose(wanted)
        unchanged = progress["sources"] == file_stamps(map(place, progress["sources"]))
        if same and unchanged and _text_is_whole(folder, progress):
            for path in folder.rglob(".*.part*"):  # files that were not finished
                path.unlink()
            return progress
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return None


def _text_is_whole(folder: Path, progress: Progress) -> bool:
    """Whether the text of the next pair still has all its lines: dropping too long pairs rewrites it in place."""
    for split, source, target in progress["pairs"][progress["done"] :][:1]:
        for prefix in side_prefixes(folder / BITEXT, (split, source, target)):
            with open(raw_text(prefix), "rb") as handle:
                if sum(1 for _ in handle) != progress["counts"]["sentence_pairs"][split][f"{source}-{target}"]:
                    return False
    return True

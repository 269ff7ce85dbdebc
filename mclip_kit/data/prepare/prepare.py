"""Turns a corpus into a prepared folder. `layout.py` lists the files of the folder."""

import gc
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mclip_kit import __version__
from mclip_kit.data.corpora import Content, Corpus, find_reader
from mclip_kit.data.corpora.source import Source
from mclip_kit.data.manifest import file_stamps
from mclip_kit.data.prepare.bitext_writer import write_bitext
from mclip_kit.data.prepare.columns import to_columns
from mclip_kit.data.prepare.fingerprints import (
    fingerprint_bitext,
    fingerprint_tables,
    hash_picture_table,
    side_hashes,
)
from mclip_kit.data.prepare.hashed_text import hashes_of
from mclip_kit.data.prepare.held_out import drop_leaks
from mclip_kit.data.prepare.parallel_text import side_prefixes
from mclip_kit.data.prepare.reading import read_blocks
from mclip_kit.data.prepare.resume import (
    PROGRESS,
    Progress,
    check_prepared,
    check_replaceable,
    check_sources,
    describe_wanted,
    part_of,
    put_back,
    replace_folder,
    resume,
)
from mclip_kit.data.prepare.writer import TableWriter
from mclip_kit.data.tokenizer import XlmrTokenizer
from mclip_kit.disk import disk_errors
from mclip_kit.engine.base import Engine
from mclip_kit.engine.local import engine_of
from mclip_kit.errors import DataError
from mclip_kit.files import hash_files, move, write_json, write_whole
from mclip_kit.layout import BITEXT, IMAGES_ARRAY, MANIFEST
from mclip_kit.progress import tqdm
from mclip_kit.storage import exists, fetch, hold, send_rest
from mclip_kit.urls import is_copy

OBJECTS = 2**17  # new ones after which Python looks for cycles of objects


def prepare(
    corpus: Corpus,
    out: Path,
    spm: Path | None = None,
    source: Source | None = None,
    workers: int | Engine | None = None,
    again: bool = False,
) -> dict[str, Any]:
    """Read a corpus and write its folder, whole or not at all.

    After an interruption (Ctrl-C, a killed process), the next call continues after the last file that is whole. After
    an error, nothing is left.

    Args:
        corpus: the declaration.
        out: the folder; if it already holds the same preparation, it is kept as it is.
        spm: a SentencePiece model in XLM-R's form; None trains one on the training text.
        source: where the corpus's files are; None for corpora that need no files.
        workers: number of processes for large inputs; None: as many as CPU cores. Or an engine, as
            `engine.cluster.connect` gives it.
        again: prepare `out` again if it exists; it is replaced when the new folder is whole.
    Returns:
        The manifest.
    Raises:
        CheckpointError: `spm` is not a SentencePiece model in XLM-R's form.
        DataError: the source is missing or wrong, or `out` holds something else; with `again`, files that are not
            from a preparation.
    """
    found = source or Source(None, obtain=corpus.obtain)
    return write_prepared(lambda: find_reader(corpus)(corpus, found), corpus, out, spm, found, workers, again)


def write_prepared(
    read: Callable[[], Content],
    corpus: Corpus,
    out: Path,
    spm: Path | None = None,
    source: Source | None = None,
    workers: int | Engine | None = None,
    again: bool = False,
) -> dict[str, Any]:
    """As `prepare`, but with the rows that the function `read` returns."""
    source = source or Source(None, obtain=corpus.obtain)
    wanted = describe_wanted(corpus, spm, source)
    send_rest(out)
    if _is_there(out) and not again:
        return check_prepared(out, wanted)
    building = part_of(out)
    with disk_errors(out), hold(out, doing="is preparing it"), fewer_collections():
        put_back(out)
        there = _is_there(out)
        if there and not again:  # another process has just finished
            return check_prepared(out, wanted)
        if there:
            check_replaceable(out)
        building.mkdir(parents=True, exist_ok=True)
        try:
            given = XlmrTokenizer(fetch(spm)) if spm else None  # first, so that a wrong file is an error at once
            progress = resume(building, wanted) or _read(read(), corpus, building, source, wanted, workers)
            check_sources(out, progress["sources"] if there else ())
            manifest = _finish(corpus, building, given, progress, workers)
        except Exception:  # not Ctrl-C: what it interrupts stays, to resume from
            shutil.rmtree(building, ignore_errors=True)
            raise
        if is_copy(out) and not there:
            shutil.rmtree(out, ignore_errors=True)  # copies of objects that are gone
        (replace_folder if there else move)(building, out)
    return manifest


def _is_there(out: Path) -> bool:
    return exists(out) if is_copy(out) else os.path.lexists(out)


@contextmanager
def fewer_collections() -> Iterator[None]:
    """Python looks for cycles of objects seldom, which takes a third of the time where many rows have none."""
    before = gc.get_threshold()
    gc.set_threshold(OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _read(
    content: Content, corpus: Corpus, folder: Path, source: Source, wanted: dict[str, Any], workers: int | Engine | None
) -> Progress:
    """Write the tables, their fingerprints and the text of the bitext."""
    source.check_hashes(corpus.checksums)
    engine = engine_of(workers)
    with (
        TableWriter(folder, corpus, source, content.pixels is not None, engine) as tables,
        tqdm(desc="reading", unit=" rows", unit_scale=True, dynamic_ncols=True) as bar,
    ):
        for block in read_blocks(content, corpus, source.account, engine):
            tables.add(block)
            bar.update(block.rows)
    _check_not_empty(tables)
    if content.pixels is not None:
        if len(content.pixels) != len(tables.pictures):
            raise DataError(f"{corpus.reader}: {len(content.pixels)} pictures have {len(tables.pictures)} names")
        with write_whole(folder / IMAGES_ARRAY) as temporary:
            np.save(temporary, content.pixels)
    hashed, keys_N2 = hash_picture_table(
        folder, len(tables.pictures), corpus.pictures, engine, tables.counts["missing_pictures",]
    )
    if corpus.cleaning.leaks == "drop":
        drop_leaks(tables, hashed["contents"])
    counts = tables.counted()
    _check_counts(corpus, counts)
    fingerprint_tables(folder, tables.captions, tables.pictures, hashed)
    to_columns(folder, tables.captions, keys_N2, tables.uncaptioned)
    for path in folder.rglob(hashes_of(Path("*")).name):
        path.unlink()
    progress = {
        "wanted": wanted,
        "sources": file_stamps(sorted(source.used)),
        "counts": counts,
        "pairs": [list(pair) for pair in tables.pairs],
        "done": 0,  # number of pairs that are binarised
    }
    write_json(folder / PROGRESS, progress)
    return progress


def _check_not_empty(tables: TableWriter) -> None:
    if len(tables.pictures) or tables.pairs:
        return
    reasons = tables.cleaner.counts or tables.source.account.left_out
    why = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
    remedy = "change `cleaning`, or fix the files" if tables.cleaner.counts else "fix the files"
    empty = f"all of it was left out ({why}); {remedy}" if why else "the corpus is empty"
    places = sorted(map(str, tables.source.used)) or [str(tables.source.root or tables.corpus.reader)]
    more = f" and {len(places) - 1} more" if len(places) > 1 else ""
    raise DataError(f"{places[0]}{more}: {empty}; {tables.corpus.obtain}")


def _check_counts(corpus: Corpus, counts: dict[str, Any]) -> None:
    """Compare with the counts that the declaration expects of a whole source."""
    for key, expected in corpus.expect.items():
        what, *path = key.split(".")
        found: Any = counts[{"pairs": "sentence_pairs"}.get(what, "splits" if path and what == "images" else what)]
        for part in path:
            found = found.get(part, 0) if isinstance(found, dict) else 0
        if found != expected:
            raise DataError(
                f"{key}: {found:,} found, {expected:,} expected; fetch the source again ({corpus.obtain}), or accept "
                "what was found with --set expect={}"
            )


def _finish(
    corpus: Corpus, folder: Path, given: XlmrTokenizer | None, progress: Progress, workers: int | Engine | None
) -> dict[str, Any]:
    """Binarise the text, and write the manifest."""
    bitext = folder / BITEXT
    pairs = [(split, source, target) for split, source, target in progress["pairs"]]
    if pairs and not given and not any(split == "train" for split, _, _ in pairs):
        tqdm.write(
            "parallel text without a train split is not binarised, because there is no text to train a vocabulary on; "
            "give one: --spm FILE"
        )
        shutil.rmtree(bitext, ignore_errors=True)  # after an interruption it may be gone already
    elif pairs:
        write_bitext(folder, pairs, corpus, given, progress, workers)
        captions = {split: sum(languages.values()) for split, languages in progress["counts"]["captions"].items()}
        fingerprint_bitext(folder, pairs, captions)
    temporary = [folder / PROGRESS, *(side_hashes(prefix) for pair in pairs for prefix in side_prefixes(bitext, pair))]
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p not in (*temporary, folder / MANIFEST)]
    manifest = progress["wanted"] | {
        "tool": f"mclip_kit {__version__}",
        "licences": [licence.model_dump() for licence in corpus.licences],
        "sources": progress["sources"],
        "counts": progress["counts"],
        "files": dict(zip([str(p.relative_to(folder)) for p in files], hash_files(files), strict=True)),
    }
    write_json(folder / MANIFEST, manifest)
    for path in temporary:
        path.unlink(missing_ok=True)
    return manifest

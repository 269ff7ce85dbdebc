"""Takes out of the training rows of a folder that is being built what its held-out splits have too."""

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import compress
from pathlib import Path

import numpy as np

from mclip_kit.data.bitext import raw_text
from mclip_kit.data.prepare.fingerprints import row_blocks
from mclip_kit.data.prepare.hashed_text import hashed_blocks, hashes_of, rewritten
from mclip_kit.data.prepare.parallel_text import side_prefixes
from mclip_kit.data.prepare.splits import is_in, union
from mclip_kit.data.prepare.writer import TableWriter
from mclip_kit.errors import DataError
from mclip_kit.layout import BITEXT, CAPTION_COLUMNS, CAPTIONS_TABLE, IMAGES_TABLE

KEPT = "keep them with --set cleaning.leaks=report"


def drop_leaks(tables: TableWriter, contents_N: np.ndarray) -> None:
    """Rewrite tables and text without what is held out too, and correct and complete the counts.

    Train loses the captions with a text or picture of valid or test, and the sentence pairs of which one side is in
    them, in whatever language; where splits were drawn, valid loses what test has. Hashes of held-out texts are in
    memory, rows are not.

    Args:
        tables: written and closed.
        contents_N: hashes of the contents of all pictures, uint64 in the order of images.tsv; 0: not known.
    Raises:
        DataError: nothing would be left of a split.
    """
    drawn = any(key[0] == "drawn" for key in tables.counts)
    for start, above in [("valid", ("test",))] * drawn + [("train", ("valid", "test"))]:
        texts = union(_held_out_texts(tables, above))
        if len(texts):
            reason = f"of {start}, because {' or '.join(above)} has the same"
            _drop_captions(tables, start, texts, _shared_pictures(tables, start, above, contents_N), reason)
            _drop_pairs(tables, start, texts, reason)


def _held_out_texts(tables: TableWriter, above: tuple[str, ...]) -> Iterator[np.ndarray]:
    """Hashes of all texts of the splits with these beginnings."""
    for lines, hashes_N in hashed_blocks(tables.folder / CAPTIONS_TABLE, header=True):
        yield hashes_N[[line.split("\t", 3)[2].startswith(above) for line in lines]]
    for pair in tables.pairs:
        for prefix in side_prefixes(tables.folder / BITEXT, pair) if pair[0].startswith(above) else ():
            yield np.fromfile(hashes_of(raw_text(prefix)), "<u8")


def _shared_pictures(tables: TableWriter, start: str, above: tuple[str, ...], contents_N: np.ndarray) -> set[str]:
    """Pictures with the beginning `start` that also have one of `above`, by name or by content."""
    held_N = np.fromiter((any(s.startswith(above) for s in own) for own in tables.splits.values()), bool)
    shared_N = held_N | is_in(contents_N, union([contents_N[held_N]]))
    return {
        name
        for (name, own), shared in zip(tables.splits.items(), shared_N, strict=True)
        if shared and any(split.startswith(start) for split in own)
    }


def _drop_captions(tables: TableWriter, start: str, texts: np.ndarray, pictures: set[str], reason: str) -> None:
    table, of_split = tables.folder / CAPTIONS_TABLE, f"captions {reason}"
    total = sum(n for key, n in tables.counts.items() if key[0] == "captions" and key[1].startswith(start))
    before = tables.cleaner.counts[of_split]
    lost = {(name, split) for name in pictures for split in tables.splits[name] if split.startswith(start)}
    left: set[tuple[str, str]] = set()
    if not pictures and not _has_leaks(table, start, texts):
        return

    def keep(row: list[str], leaks: bool) -> bool:
        name, language, split, _ = row
        if not split.startswith(start):
            return True
        if not leaks and name not in pictures:
            left.add((name, split))
            return True
        lost.add((name, split))
        tables.counts["captions", split, language] -= 1
        tables.cleaner.counts[of_split] += 1
        return False

    with ExitStack() as stack:
        written = rewritten(stack, table, "\t".join(CAPTION_COLUMNS) + "\n")
        for lines, hashes_N in hashed_blocks(table, header=True):
            leaks = is_in(hashes_N, texts).tolist()
            kept = [keep(line.split("\t", 3), leaked) for line, leaked in zip(lines, leaks, strict=True)]
            written.write(compress(lines, kept), hashes_N[kept])
    dropped = tables.cleaner.counts[of_split] - before
    _check_rest(f"captions {reason}", dropped, total)
    _leave_splits(tables, lost - left, f"pictures {reason}")
    tables.cleaner.counts = +tables.cleaner.counts
    tables.counts = +tables.counts


def _has_leaks(table: Path, start: str, texts: np.ndarray) -> bool:
    """Whether a caption of a split with this beginning is in texts."""
    for lines, hashes_N in hashed_blocks(table, header=True):
        for row in np.flatnonzero(is_in(hashes_N, texts)):
            if lines[row].split("\t", 3)[2].startswith(start):
                return True
    return False


def _leave_splits(tables: TableWriter, lost: set[tuple[str, str]], reason: str) -> None:
    """Take pictures that have lost all their captions out of the split."""
    strata = {row[0]: row[2] for rows in row_blocks(tables.folder / IMAGES_TABLE) for row in rows} if lost else {}
    for name, split in lost:
        tables.splits[name] = tuple(other for other in tables.splits[name] if other != split)
        tables.counts["splits", split] -= 1
        tables.counts["strata", split, strata[name]] -= 1
    tables.cleaner.counts[reason] += len(lost)


def _drop_pairs(tables: TableWriter, start: str, texts: np.ndarray, reason: str) -> None:
    for pair in [pair for pair in tables.pairs if pair[0].startswith(start)]:
        paths = [raw_text(prefix) for prefix in side_prefixes(tables.folder / BITEXT, pair)]
        dropped = _rewrite(paths, texts)
        _check_rest(f"sentence pairs in {'-'.join(pair[1:])} {reason}", dropped, tables.pairs[pair])
        tables.pairs[pair] -= dropped
        if dropped:
            tables.cleaner.counts[f"sentence pairs {reason}"] += dropped


def _rewrite(paths: list[Path], texts: np.ndarray) -> int:
    """Rewrite two files with the same number of lines without the lines of which one is in texts; how many went."""
    dropped = 0
    with ExitStack() as stack:
        written = [rewritten(stack, path) for path in paths]
        for sides in zip(*map(hashed_blocks, paths), strict=True):
            kept_N = ~np.logical_or(*(is_in(hashes_N, texts) for _, hashes_N in sides))
            dropped += int((~kept_N).sum())
            for file, (lines, hashes_N) in zip(written, sides, strict=True):
                file.write(compress(lines, kept_N.tolist()), hashes_N[kept_N])
    return dropped


def _check_rest(what: str, dropped: int, total: int) -> None:
    if dropped and dropped == total:
        raise DataError(f"cleaning.leaks: nothing is left without all {total:,} {what}; {KEPT}, or split them yourself")

"""A corpus becomes a prepared folder.

manifest.json               counts, hashes, licences, tool version
images.npy                  uint8 (N, S, S, 3), where the corpus draws its pictures itself
images.tsv                  image, group, stratum; row order is that of images.npy; else also file, which is empty
                            where there was none
captions.tsv                image, language, split, caption; one row a caption
bitext/                     fairseq-binarised parallel sentences: sentencepiece.bpe.model, dict.LANG.txt,
                            SPLIT.SRC-TGT.LANG.bin/.idx and the raw text beside, .txt
fingerprints/               hashes of pictures and texts, by split, for the leakage guard
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mclip_kit import __version__
from mclip_kit.data import fairseq_io
from mclip_kit.data.bitext import raw_text
from mclip_kit.data.corpora import Content, Corpus, Row, Vocabulary, reader
from mclip_kit.data.corpora.source import File, Source
from mclip_kit.data.prepare.binarize import binarize, hashes
from mclip_kit.data.prepare.fingerprints import fingerprint_bitext, fingerprint_tables
from mclip_kit.data.prepare.writer import Pair, TableWriter, prefixes
from mclip_kit.data.tokenizer import MODEL_FILE, XlmrTokenizer, loading, train_sentencepiece
from mclip_kit.errors import DataError
from mclip_kit.files import locked, write_json, write_whole

READ = "read.json"  # in a folder that is being built: its tables are whole

Progress = dict[str, Any]
"""What reading the source has found: what was wanted, the source's files, counts, pairs."""


def prepare(
    corpus: Corpus, out: Path, spm: Path | None = None, source: Source | None = None, workers: int | None = None
) -> dict[str, Any]:
    """Read a corpus and write its folder, whole or not at all.

    What was interrupted goes on behind the last file that is whole; what failed leaves nothing behind.

    Args:
        corpus: the declaration.
        out: the folder; one that already holds the same preparation is kept as it is.
        spm: a SentencePiece model in XLM-R's form; None trains one on the training text.
        source: where the corpus's files are; None for corpora that need none.
        workers: processes for large inputs; None: the computer's cores.
    Returns:
        The manifest.
    Raises:
        DataError: the source is missing or wrong, or `out` holds something else.
    """
    found = source or Source(None, obtain=corpus.obtain)
    return write(lambda: reader(corpus)(corpus, found), corpus, out, spm, found, workers)


def write(
    read: Callable[[], Content],
    corpus: Corpus,
    out: Path,
    spm: Path | None = None,
    source: Source | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Write the rows that `read` finds as a prepared folder, and return its manifest; see `prepare`."""
    source = source or Source(None, obtain=corpus.obtain)
    wanted = _wanted(corpus, spm, source)
    if os.path.lexists(out):
        return _already_prepared(out, wanted)
    building = out.with_name(f".{out.name}.part")
    building.mkdir(parents=True, exist_ok=True)
    with locked(building) as mine:
        if not mine:
            raise DataError(f"{out}: another process is preparing it; wait for it")
        if out.exists():  # another process has just finished
            shutil.rmtree(building)
            return _already_prepared(out, wanted)
        try:
            given = loading(spm) if spm else None
            if given and given.done():
                given.result()  # what is no vocabulary shows itself at once, before anything is read
            progress = _earlier(building, wanted) or _read(read(), corpus, building, source, wanted, given)
            manifest = _finish(corpus, building, given.result() if given else None, progress, workers)
        except Exception:  # what Ctrl-C has cut short stays, to go on with
            shutil.rmtree(building, ignore_errors=True)
            raise
        os.replace(building, out)
    return manifest


def _wanted(corpus: Corpus, spm: Path | None, source: Source) -> dict[str, Any]:
    """What a manifest must say for its folder to be this preparation."""
    places = [str(place.resolve()) if place else None for place in (source.root, source.images)]
    declared = corpus.model_dump(mode="json")
    return {"corpus": declared, "spm": _hash(spm) if spm else None, "source": places[0], "pictures": places[1]}


def _already_prepared(out: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        found = {key: manifest.get(key) for key in wanted}
    except (OSError, ValueError, AttributeError):
        raise DataError(f"{out}: exists and is not a prepared corpus; remove it or choose another --out") from None
    if found != wanted:
        raise DataError(f"{out}: prepared from another declaration or source; remove it or choose another --out")
    there = [
        path for path in manifest.get("sources", {}) if os.path.exists(path)
    ]  # the rest may have been cleared away
    for path, stamp in _stamps(map(Path, there)).items():
        if stamp != manifest["sources"][path]:
            raise DataError(f"{path}: has changed since {out} was prepared; remove {out} or choose another --out")
    for name in manifest["files"]:
        if not (out / name).is_file():
            raise DataError(f"{out / name}: missing; remove {out} and prepare it again")
    return manifest


def _earlier(folder: Path, wanted: dict[str, Any]) -> Progress | None:
    """What an interrupted preparation has read, if it was this one and its source is as it was; else clears it away."""
    with suppress(OSError, ValueError):
        progress: Progress = json.loads((folder / READ).read_text(encoding="utf-8"))
        same = progress["wanted"] == wanted and progress["sources"] == _stamps(map(Path, progress["sources"]))
        if same and _is_whole(folder, progress):
            for path in folder.rglob(".*.part*"):  # what was not whole
                path.unlink()
            return progress
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return None


def _is_whole(folder: Path, progress: Progress) -> bool:
    """Whether the text of the pair that comes next is as it was read: pairs that are dropped leave it in place."""
    for split, source, target in progress["pairs"][progress["done"] :][:1]:
        for prefix in prefixes(folder / "bitext", (split, source, target)):
            with open(raw_text(prefix), "rb") as handle:
                if sum(1 for _ in handle) != progress["counts"]["sentence_pairs"][split][f"{source}-{target}"]:
                    return False
    return True


def _stamps(paths: Iterable[Path]) -> dict[str, list[int]]:
    stats = {str(path): path.stat() for path in paths}
    return {path: [stat.st_size, stat.st_mtime_ns] for path, stat in stats.items()}


def _read(
    content: Content,
    corpus: Corpus,
    folder: Path,
    source: Source,
    wanted: dict[str, Any],
    given: Future[XlmrTokenizer] | None,
) -> Progress:
    """Write the tables and the text of the bitext."""
    source.check(corpus.checksums)
    with TableWriter(folder, corpus, source, content.pixels is not None) as tables:
        rows = _unless_wrong(iter(content.rows), given) if given else content.rows
        for row in tqdm(rows, "reading", unit=" rows", unit_scale=True, dynamic_ncols=True):
            tables.add(row)
    if not tables.splits and not tables.pairs:
        why = ", ".join(f"{count:,} {reason}" for reason, count in tables.cleaner.counts.items())
        empty = f"all of it was left out ({why}); mend `cleaning`, or the files" if why else "the corpus is empty"
        places = sorted(map(str, source.used)) or [str(source.root or corpus.reader)]
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        raise DataError(f"{places[0]}{more}: {empty}; {corpus.obtain}")
    if content.pixels is not None:
        if len(content.pixels) != len(tables.splits):
            raise DataError(f"{corpus.reader}: {len(content.pixels)} pictures have {len(tables.splits)} names")
        with write_whole(folder / "images.npy") as temporary:
            np.save(temporary, content.pixels)
    counts = tables.counted()
    _check_counts(corpus, counts)
    fingerprint_tables(folder, tables.splits, corpus.pictures)
    progress = {
        "wanted": wanted,
        "sources": _stamps(sorted(source.used)),
        "counts": counts,
        "pairs": [list(pair) for pair in tables.pairs],
        "done": 0,  # of the pairs
    }
    write_json(folder / READ, progress)
    return progress


def _unless_wrong(rows: Iterator[Row], given: Future[XlmrTokenizer]) -> Iterator[Row]:
    """Rows, until a vocabulary that cannot be read shows itself."""
    for row in rows:
        yield row
        if given.done():
            given.result()
            break
    yield from rows


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
                "what is there with --set expect={}"
            )


def _finish(
    corpus: Corpus, folder: Path, given: XlmrTokenizer | None, progress: Progress, workers: int | None
) -> dict[str, Any]:
    """Binarise the text, and write the manifest."""
    pairs = [(split, source, target) for split, source, target in progress["pairs"]]
    if pairs and not given and not any(split == "train" for split, _, _ in pairs):
        tqdm.write(
            "parallel text without a train split is not binarised, for want of a vocabulary; give one: --spm FILE"
        )
        shutil.rmtree(folder / "bitext", ignore_errors=True)  # it is gone if this was interrupted
    elif pairs:
        _write_bitext(folder, pairs, corpus, given, progress, workers)
        captions = {split: sum(languages.values()) for split, languages in progress["counts"]["captions"].items()}
        fingerprint_bitext(folder, pairs, captions)
    needless = [folder / READ, *(hashes(prefix) for pair in pairs for prefix in prefixes(folder / "bitext", pair))]
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p not in (*needless, folder / "manifest.json")]
    manifest = progress["wanted"] | {
        "tool": f"mclip_kit {__version__}",
        "licences": [licence.model_dump() for licence in corpus.licences],
        "sources": progress["sources"],
        "counts": progress["counts"],
        "files": {str(p.relative_to(folder)): _hash(p) for p in files},
    }
    write_json(folder / "manifest.json", manifest)
    for path in needless:
        path.unlink(missing_ok=True)
    return manifest


def _write_bitext(
    folder: Path,
    pairs: list[Pair],
    corpus: Corpus,
    given: XlmrTokenizer | None,
    progress: Progress,
    workers: int | None,
) -> None:
    """Vocabulary, dictionaries, `.bin` and `.idx`; `progress` says which pairs are done, and learns which become so."""
    bitext, counts = folder / "bitext", progress["counts"]
    tokenizer = _vocabulary(bitext, pairs, corpus.vocabulary, given)
    waiting = pairs[progress["done"] :]
    lines = 2 * sum(counts["sentence_pairs"][split][f"{source}-{target}"] for split, source, target in waiting)
    sides = [prefixes(bitext, pair) for pair in waiting]
    dropping = corpus.cleaning.too_long == "drop"
    reason = "too long, dropped" if dropping else "too long, cut"
    with ThreadPoolExecutor(1) as beside:
        dictionaries = beside.submit(_write_dictionaries, bitext, pairs, tokenizer)
        for pair, too_long in zip(waiting, binarize(sides, tokenizer, corpus.cleaning, lines, workers), strict=True):
            of_split, name = counts["sentence_pairs"][pair[0]], "-".join(pair[1:])
            if too_long:
                counts["left_out"][reason] = counts["left_out"].get(reason, 0) + too_long
                of_split[name] -= too_long if dropping else 0
            if not of_split[name]:
                raise DataError(
                    f"cleaning.max_tokens: all sentence pairs of {pair[0]} {name} are longer than "
                    f"{corpus.cleaning.max_tokens}; raise it, or set cleaning.too_long=cut"
                )
            progress["done"] += 1
            write_json(folder / READ, progress)
        dictionaries.result()


def _write_dictionaries(bitext: Path, pairs: list[Pair], tokenizer: XlmrTokenizer) -> None:
    languages = sorted({language for pair in pairs for language in pair[1:]})
    fairseq_io.write_dictionary(tokenizer.pieces(), *(bitext / f"dict.{language}.txt" for language in languages))


def _vocabulary(bitext: Path, pairs: list[Pair], vocabulary: Vocabulary, given: XlmrTokenizer | None) -> XlmrTokenizer:
    """The given SentencePiece model, or one trained on the training text; a copy of it lies in the folder."""
    model = bitext / MODEL_FILE
    if given:
        with write_whole(model) as temporary:
            shutil.copyfile(given.path, temporary)
        return given
    if not model.exists():
        sides = [raw_text(prefix) for pair in pairs if pair[0] == "train" for prefix in prefixes(bitext, pair)]
        lines = (line for side in sides for line in File(side).lines())
        return train_sentencepiece(lines, model, vocabulary.pieces, vocabulary.coverage)
    return XlmrTokenizer(model)


def _hash(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()

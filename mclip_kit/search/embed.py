"""Vectors of pictures or of texts, with metadata, in a folder that can be added to.

EMBEDDINGS/
    embeddings.json     counts, what was left out, the model, hashes of the files; or that the vectors are not finished
    img_emb/*.npy       vectors of pictures, float32 or float16 (N, D), L2-normalised: the layout of clip-retrieval
    text_emb/*.npy      or vectors of texts
    metadata/*.parquet  a row for each vector: see `COLUMNS`
    unreadable.tsv      pictures that could not be read, with the reason; only if there are some
    features/           what the towers gave, by content: whoever embeds again computes only what is new
    tables/             the prepared form of a table, only if the pictures were named by one

Shapes: N pictures or texts, D embedding.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mclip_kit import __version__
from mclip_kit.data.corpora.account import Account
from mclip_kit.data.corpora.source import File
from mclip_kit.engine.base import Engine, Map
from mclip_kit.errors import CheckpointError, DataError, one_line
from mclip_kit.features import hashing
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.extract import FrozenTowers
from mclip_kit.files import hash_files, new_folder, printable, write_json, write_text
from mclip_kit.interop.vector_files import IMAGES, METADATA, TEXTS, VectorFiles
from mclip_kit.layout import FEATURES, MODEL_CONFIG
from mclip_kit.locks import OTHER
from mclip_kit.models.student import Student
from mclip_kit.progress import tqdm
from mclip_kit.search.embedders import COLUMNS, EmbeddedBlock, PictureEmbedder, TextEmbedder, load_embedder
from mclip_kit.search.pictures import BLOCK, blocks
from mclip_kit.search.pictures import TABLES as TABLE_ENDINGS
from mclip_kit.search.space import image_space
from mclip_kit.search.vectors import FACTS
from mclip_kit.storage import exists, fetch, forget, hold, place, send
from mclip_kit.urls import is_copy

if TYPE_CHECKING:
    from mclip_kit.models.multilingual_clip import MultilingualClip

UNREADABLE = "unreadable.tsv"
TABLES = "tables"
NEW = ".new"  # where vectors are until all are written
NAMES = {IMAGES: "image_path", TEXTS: "caption"}
DIGITS = 4  # of a file's number: the rows of a stream are not known before

Dtype = Literal["fp32", "fp16"]


@dataclass
class Embedded:
    """What is in a folder of vectors.

    Attributes:
        kind: `img_emb` or `text_emb`.
        count: vectors.
        account: what the source has that is not embedded.
        unreadable: file -> why.
    """

    kind: str
    count: int = 0
    account: Account = field(default_factory=Account)
    unreadable: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """What was left out, a line each."""
        return Account.lines(self.account.as_json())


def embed_pictures(
    model: MultilingualClip,
    source: str | Path,
    out: str | Path,
    dtype: Dtype = "fp32",
    workers: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    made_with: str = "",
    log: Callable[[str], None] = lambda line: None,
    engine: Engine | None = None,
) -> Embedded:
    """Embed pictures. What is interrupted goes on where it stopped; pictures that were embedded before are not again.

    >>> from mclip_kit.search.embed import embed_pictures
    >>> embed_pictures(model, "photos", "embeddings").count
    3

    Args:
        model: `encode_image` gives the same vectors.
        source: as `pictures.blocks` takes it.
        out: the folder.
        dtype: of stored numbers.
        workers: processes that decode picture files; None: as many as CPU cores.
        rank: this process's number, and
        world_size: processes that embed into one folder together; the first one writes the vectors.
        made_with: the model's name, for people; with an engine, its folder.
        log: takes a line about what is computed, and about what is damaged.
        engine: its processes load the model from `made_with` and embed blocks of pictures; None: this process does.
    Raises:
        DataError: the source is missing or has no picture that can be read.
        DiskError: the disk is full.
        BusyError: another process writes to the folder.
        CheckpointError: an embedding is non-finite.
    """
    out = place(out)
    _check_place(out, IMAGES)
    if world_size > 1 and Path(source).suffix.lower() in TABLE_ENDINGS:
        raise DataError(
            f"{source}: several processes cannot prepare a table; run mclip-kit prepare --pairs {source} first"
        )
    found = Embedded(IMAGES)
    cache = FeatureCache(
        _features(out), dtype, rank=rank, world_size=world_size, workers=workers, log=log, device=model.device
    )
    towers = FrozenTowers(model, cache)
    source_blocks = blocks(source, out / TABLES, found.account)
    if rank:
        for block in source_blocks:
            towers.images(block.captions, block.images)
        return found
    facts = {
        "model": made_with,
        "source": str(source),
        "space": image_space(model, towers.weights("image")),
        "dtype": dtype,
    }

    with _started(PictureEmbedder, model, cache, dtype, engine, made_with) as embed:
        return _write(model, out, found, embed(source_blocks), facts)


def embed_texts(
    model: Student,
    file: str | Path,
    out: str | Path,
    dtype: Dtype = "fp32",
    made_with: str = "",
    log: Callable[[str], None] = lambda line: None,
    engine: Engine | None = None,
) -> Embedded:
    """Embed the lines of a text file by the student; a text that was embedded before is not again.

    Args:
        file: a text a line; .gz, .xz and .bz2 are read, too.
        made_with, log, engine: as of `embed_pictures`.
    Raises:
        DataError: the file is missing or empty.
        BusyError: another process writes to the folder.
        CheckpointError: an embedding is non-finite.
    """
    out, found = place(out), Embedded(TEXTS)
    _check_place(out, TEXTS)
    cache = FeatureCache(_features(out), dtype, log=log, device=model.device)
    weights = [hashing.hash_weights(module) for module in (model.encoder, model.projector)]
    facts = {"model": made_with, "source": str(file), "space": hashing.hash_facts({"weights": weights}), "dtype": dtype}
    lines = File(place(file)).lines()
    with _started(TextEmbedder, model, cache, dtype, engine, made_with) as embed:
        return _write(model, out, found, embed(iter(lambda: list(islice(lines, BLOCK)), [])), facts)


@contextmanager
def _started(
    kind: type[PictureEmbedder] | type[TextEmbedder],
    model: Any,
    cache: FeatureCache,
    dtype: Dtype,
    engine: Engine | None,
    folder: str,
) -> Iterator[Callable[[Iterable[Any]], Iterator[EmbeddedBlock]]]:
    """An embedder of blocks; of an engine, if there is one, whose processes load the model from its folder."""
    if engine is None:
        yield partial(map, kind(model, cache))
        return
    if not Path(folder, MODEL_CONFIG).is_file():
        raise CheckpointError(f"{folder or 'made_with'}: no model folder; an engine's processes load the model from it")
    with engine.map(load_embedder, kind, Path(folder), cache.root, dtype, cache.workers) as embed:
        yield partial(_shown, embed)


def _shown(embed: Map, items: Iterable[Any]) -> Iterator[EmbeddedBlock]:
    """What an engine's processes have embedded, with a bar."""
    with tqdm(desc="embedding", unit="row", unit_scale=True, dynamic_ncols=True) as bar:
        for block in embed(items):
            yield block
            bar.update(len(block[0]))


def _write(
    model: Student,
    out: Path,
    found: Embedded,
    vectors: Iterable[EmbeddedBlock],
    facts: dict[str, Any],
) -> Embedded:
    """Write all vectors beside the old ones, then put them in their place."""
    kind, numbers = found.kind, "<f2" if facts["dtype"] == "fp16" else "<f4"
    with hold(out, FACTS, "embeds into it", OTHER):
        with new_folder(out / NEW) as part:
            with VectorFiles(part, {kind: NAMES[kind]}, COLUMNS[kind], model.width, numbers, digits=DIGITS) as files:
                for vectors_ND, table, unreadable in vectors:
                    files.append({kind: vectors_ND}, table)
                    found.count += len(table)
                    found.unreadable |= unreadable
            found.account.kept = found.count
            for name, why in found.unreadable.items():
                found.account.leave_out("pictures that cannot be read", f"{name}: {why}")
            if not found.count:
                raise DataError(f"{facts['source']}: nothing to embed{'; '.join(['', *found.lines()])}")
            written = [file for name in (kind, METADATA) for file in sorted((part / name).iterdir())]
            hashes = dict(zip((str(file.relative_to(part)) for file in written), hash_files(written), strict=True))
            write_json(out / FACTS, {"kind": kind, "unfinished": True})
            for name in (kind, METADATA):
                shutil.rmtree(out / name, ignore_errors=True)
            (out / UNREADABLE).unlink(missing_ok=True)
            for name in (kind, METADATA, UNREADABLE):
                forget(out / name)
            for name in (kind, METADATA):
                (part / name).rename(out / name)
                send(out / name)
        shutil.rmtree(out / NEW, ignore_errors=True)
        if found.unreadable:
            lines = ["image\treason", *(f"{one_line(name)}\t{why}" for name, why in found.unreadable.items()), ""]
            write_text(out / UNREADABLE, printable("\n".join(lines)))
        counts = {"vectors": found.count, "width": model.width, "unreadable": len(found.unreadable)}
        tool = {"tool": f"mclip_kit {__version__}", "kind": kind}
        write_json(out / FACTS, {**tool, **facts, **counts, "rows": found.account.as_json(), "files": hashes})
    return found


def _features(out: Path) -> Path:
    """Where outputs of towers are kept; those of a folder in object storage stay on this machine."""
    return out / (f".{FEATURES}" if is_copy(out) else FEATURES)


def _check_place(out: Path, kind: str) -> None:
    """CheckpointError if a folder has what is not its own, and what writing vectors of a kind would replace."""
    facts = fetch(out / FACTS)
    there = [name for name in (IMAGES, TEXTS, METADATA, UNREADABLE) if exists(out / name)]
    if there and not facts.is_file():
        raise CheckpointError(
            f"{out / there[0]}: not written by mclip-kit embed, which would replace it; choose another --out"
        )
    other = TEXTS if kind == IMAGES else IMAGES
    if exists(out / other):
        raise CheckpointError(f"{out / other}: these vectors would lose their metadata; choose another --out")

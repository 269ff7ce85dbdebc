"""An index of vectors, by faiss: exact, or faster and approximate; vectors that come later are appended.

INDEX/
    index.json      kind, counts, the embeddings it was made from, hashes of the other files; written last, so a folder
                    that has it is whole
    index.faiss     vectors, inner product
    rows.arrow      metadata of each vector, in the same order

A vector is known by the hash of its picture: two files with one content are one vector, a file that was moved keeps its
vector, and the vector of a deleted file is not found any more.

Shapes: N vectors, D embedding, Q queries, K nearest.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import faiss
import numpy as np
import pyarrow as pa

from mclip_kit import __version__
from mclip_kit.data.columns import as_array
from mclip_kit.errors import MALFORMED, CheckpointError, DataError, first_line
from mclip_kit.files import hash_files, write_json, write_whole
from mclip_kit.interop.vector_files import TEXTS
from mclip_kit.locks import OTHER
from mclip_kit.progress import tqdm
from mclip_kit.search.vectors import ROWS as ROWS_SCHEMA
from mclip_kit.search.vectors import facts_of, read_embeddings, read_vectors
from mclip_kit.storage import fetch, forget, hold, place

Kind = Literal["flat", "hnsw", "ivfpq"]
FACTS, VECTORS, ROWS = "index.json", "index.faiss", "rows.arrow"
LINKS, BUILD_BREADTH, BREADTH = 32, 128, 128
"""hnsw: neighbours of a vector, and how many vectors are looked at when it is added, and in a search."""
PQ_BYTES, PROBES = 64, 32
"""ivfpq: bytes of a stored vector, and lists that are searched."""
FEWEST = 39 * 256  # ivfpq: vectors that faiss wants to train its codes
TRAINED = 64  # ivfpq: vectors a list that the lists are trained on
ADDED = 65_536  # vectors at once
QUERIES, NEAREST = 1000, 10
"""How many queries measure recall, among how many nearest."""
UNIT = 1e-5  # by which a length may differ from 1
GONE = 0.2  # share of deleted vectors from which on an approximate index is built anew


@dataclass(frozen=True)
class Built:
    """What became of an index.

    Attributes:
        kind: of the index.
        count: vectors that are found.
        added, gone, same: vectors that came, that went, and files whose content another file has, too.
        recall: share of the exact 10 nearest that are found; None: exact.
        queries: what it was measured with.
    """

    kind: Kind
    count: int
    added: int
    gone: int
    same: int
    recall: float | None = None
    queries: str = ""


def build(embeddings: str | Path, out: str | Path, kind: Kind | None = None) -> Built:
    """Build an index, or bring it up to date.

    >>> from mclip_kit.search.index import build
    >>> build("embeddings", "index").recall is None  # exact
    True

    Args:
        embeddings: a folder in clip-retrieval's layout, `img_emb/*.npy` and `metadata/*.parquet`, such as
            `embed_pictures` writes; from other programs, too.
        out: the folder.
        kind: `flat`: exact; `hnsw`: faster, more memory; `ivfpq`: 64 bytes a vector. None: that of the index which is
            there, else flat.
    Raises:
        DataError: the embeddings are missing, damaged or do not fit together.
        BusyError: another process writes to the index.
    """
    embeddings, out = place(embeddings), place(out)
    arrays, rows = read_embeddings(embeddings)
    with hold(out, FACTS, "writes this index", OTHER):
        old = _open_old(out, kind, arrays[0].shape[1], embeddings)
        kind = kind or (old.facts["kind"] if old else "flat")
        kept: dict[str, int] = {}  # content -> its first row, in the rows' order
        for row, key in enumerate(rows["content"].to_pylist()):
            kept.setdefault(key, row)
        known = old.rows["content"].to_pylist() if old else []
        was_gone_N = old.rows["gone"].to_numpy() if old else np.zeros(0, bool)
        here_N = np.array([kept.get(key, -1) for key in known], np.int64)
        lost_N = here_N < 0
        gone, back = int((lost_N & ~was_gone_N).sum()), int((~lost_N & was_gone_N).sum())
        before = set(known)
        new = [row for key, row in kept.items() if key not in before]
        if old and kind != "flat" and lost_N.sum() <= GONE * len(known):
            index, added = old.index, new
            moved = pa.concat_tables([rows, old.rows.select(ROWS_SCHEMA.names)])
            at_N = np.concatenate(
                [np.where(lost_N, len(rows) + np.arange(len(known)), here_N), np.array(new, np.int64)]
            )
            gone_N = np.concatenate([lost_N, np.zeros(len(new), bool)])
        else:
            added = list(kept.values())
            index, moved, at_N = _new_index(kind, arrays, added), rows, np.array(added, np.int64)
            gone_N = np.zeros(len(added), bool)
        table = moved.take(pa.array(at_N, pa.int64())).append_column("gone", pa.array(gone_N, pa.bool_()))
        for vectors_ND in _batches(arrays, added):
            index.add(vectors_ND)
        recall, queries = (None, "") if kind == "flat" else _recall(index, arrays, kept, table, embeddings)
        found = Built(kind, len(kept), len(new) + back, gone, len(rows) - len(kept), recall, queries)
        _write(out, index, table, found, embeddings)
    return found


def _open_old(out: Path, kind: Kind | None, width: int, embeddings: Path) -> "Opened | None":
    """The index that is there, if new vectors can be added to it; a damaged one is built anew."""
    try:
        old = open_index(out)
    except CheckpointError:
        return None
    space = facts_of(embeddings).get("space", "")
    if old.facts["width"] != width or (old.facts["space"] and space and old.facts["space"] != space):
        made_by = old.facts["model"] or old.facts["embeddings"]
        raise CheckpointError(f"{out}: its vectors are of another image tower ({made_by}); choose another folder")
    return old if kind in (None, old.facts["kind"]) else None


class Opened(NamedTuple):
    """An index in memory: what is known of it, faiss's index, and a row for each vector, memory-mapped."""

    facts: dict[str, Any]
    index: Any
    rows: pa.Table


def open_index(folder: Path) -> Opened:
    """Open an index.

    Raises:
        CheckpointError: it is missing or damaged; the file is named.
    """
    fetch(folder, (FACTS, VECTORS, ROWS))
    file = folder / FACTS
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        kinds = {**dict.fromkeys(("kind", "model", "space", "embeddings"), str), "width": int, "rows": int}
        for name, kind in kinds.items():
            if not isinstance(facts[name], kind):
                raise TypeError(f"{name} is no {kind.__name__}")
        for name, known in dict(facts.get("hashes") or {}).items():
            file = folder / name
            if name in (VECTORS, ROWS) and hash_files([file]) != [known]:
                raise ValueError("its SHA-256 is not that of what was written")
        file = folder / VECTORS
        index = faiss.read_index(str(file)) if file.is_file() else None
        file = folder / ROWS
        rows = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        if rows.schema.names != [*ROWS_SCHEMA.names, "gone"] or index is None:
            raise ValueError("its columns are not those of an index")
        if not (len(rows) == index.ntotal == facts["rows"] and index.d == facts["width"]):
            raise ValueError("it does not belong to the other files")
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: no index ({error.filename} is missing); run mclip-kit index") from None
    except RuntimeError:  # faiss's words are of its source code
        raise CheckpointError(f"{file}: damaged; run mclip-kit index again") from None
    except (OSError, pa.ArrowException, *MALFORMED) as error:
        raise CheckpointError(f"{file}: damaged: {first_line(error)}; run mclip-kit index again") from None
    return Opened(facts, index, rows)


def _new_index(kind: Kind, arrays: Sequence[np.ndarray], rows: Sequence[int]) -> Any:
    """An empty index; that of ivfpq is trained."""
    width = arrays[0].shape[1]
    if kind == "flat":
        return faiss.IndexFlatIP(width)
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(width, LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = BUILD_BREADTH, BREADTH
        return index
    if len(rows) < FEWEST:
        raise DataError(f"ivfpq needs {FEWEST:,} vectors or more, there are {len(rows):,}; take --kind flat or hnsw")
    lists = min(int(4 * len(rows) ** 0.5), len(rows) // 39)
    parts = max(part for part in range(1, PQ_BYTES + 1) if width % part == 0)
    index = faiss.index_factory(width, f"IVF{lists},PQ{parts}", faiss.METRIC_INNER_PRODUCT)
    index.nprobe, index.do_polysemous_training = PROBES, False  # it takes minutes, for a filter that is not used
    drawn = np.random.default_rng(0).permutation(len(rows))[: max(TRAINED * lists, FEWEST)]
    index.train(np.concatenate(list(_batches(arrays, np.array(rows)[np.sort(drawn)].tolist(), "train"))))
    return index


def _batches(arrays: Sequence[np.ndarray], rows: Sequence[int], what: str = "index") -> Iterator[np.ndarray]:
    """The vectors of ascending rows, float32 (at most `ADDED`, D)."""
    starts = np.concatenate([[0], np.cumsum([len(array) for array in arrays])])
    rows_N = np.asarray(rows, np.int64)
    with tqdm(total=len(rows_N), desc=what, unit="vector", unit_scale=True, leave=False) as bar:
        for start in range(0, len(rows_N), ADDED):
            part_B = rows_N[start : start + ADDED]
            number_B = np.searchsorted(starts, part_B, side="right") - 1
            found = [arrays[n][part_B[number_B == n] - starts[n]] for n in np.unique(number_B)]
            yield _unit(np.ascontiguousarray(np.concatenate(found), np.float32))
            bar.update(len(part_B))


def _unit(vectors_ND: np.ndarray) -> np.ndarray:
    """Vectors of length 1; those that have it already stay as they are. DataError if a number is NaN or infinite."""
    if not np.isfinite(vectors_ND).all():
        raise DataError("a vector is non-finite (NaN or inf); check the model that made it, and embed again")
    norm_N = np.linalg.norm(vectors_ND, axis=1)
    other_N = (np.abs(norm_N - 1) > UNIT) & (norm_N > 0)
    vectors_ND[other_N] /= norm_N[other_N, None]
    return vectors_ND


def _recall(
    index: Any, arrays: Sequence[np.ndarray], kept: dict[str, int], table: pa.Table, embeddings: Path
) -> tuple[float, str]:
    """The share of the exact `NEAREST` that an index finds, and what the queries were."""
    texts = [array for array in read_vectors(embeddings, TEXTS) if array.shape[1] == arrays[0].shape[1]]
    drawn = np.random.default_rng(1)
    if texts:
        given = texts[0]
        queries_QD = _unit(np.array(given[np.sort(drawn.permutation(len(given))[:QUERIES])], np.float32))
        named = f"{len(queries_QD):,} of its captions"
    else:
        rows = np.sort(drawn.permutation(list(kept.values()))[:QUERIES])
        queries_QD = np.concatenate(list(_batches(arrays, rows.tolist(), "queries")))
        named = f"{len(queries_QD):,} of its own vectors"
    place = {key: row for row, key in enumerate(table["content"].to_pylist())}
    ids_N = np.array([place[key] for key in kept])
    best: Any = None
    for number, vectors_ND in enumerate(_batches(arrays, list(kept.values()), "exact")):
        scores_QN = queries_QD @ vectors_ND.T
        ids_QN = np.broadcast_to(ids_N[number * ADDED : number * ADDED + len(vectors_ND)], scores_QN.shape)
        if best is not None:
            scores_QN, ids_QN = np.concatenate([best[0], scores_QN], 1), np.concatenate([best[1], ids_QN], 1)
        top = np.argpartition(-scores_QN, min(NEAREST, scores_QN.shape[1] - 1), axis=1)[:, :NEAREST]
        best = np.take_along_axis(scores_QN, top, 1), np.take_along_axis(ids_QN, top, 1)
    _, found_QK = nearest(index, queries_QD, NEAREST, gone_of(table))
    hits = sum(len(set(exact) & set(ids)) for exact, ids in zip(best[1].tolist(), found_QK.tolist(), strict=True))
    return hits / best[1].size, named


def gone_of(rows: pa.Table) -> np.ndarray:
    """Numbers of the vectors that are not found any more, int64."""
    return np.flatnonzero(as_array(rows["gone"].cast(pa.uint8())))


def nearest(index: Any, queries_QD: np.ndarray, top: int, gone: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores and numbers (Q, K) of the nearest vectors, best first; -1 where an approximate index finds fewer."""
    options: dict[str, Any] = {}
    if len(gone):
        selector = faiss.IDSelectorNot(faiss.IDSelectorBatch(gone))
        if isinstance(index, faiss.IndexHNSW):
            parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=max(BREADTH, top))
        elif isinstance(index, faiss.IndexIVF):
            parameters = faiss.SearchParametersIVF(sel=selector, nprobe=PROBES)
        else:
            parameters = faiss.SearchParameters(sel=selector)
        options["params"] = parameters
    elif isinstance(index, faiss.IndexHNSW) and top > BREADTH:
        options["params"] = faiss.SearchParametersHNSW(efSearch=top)
    scores_QK, ids_QK = index.search(np.ascontiguousarray(queries_QD, np.float32), top, **options)
    return scores_QK, ids_QK


def _write(out: Path, index: Any, table: pa.Table, built: Built, embeddings: Path) -> None:
    (out / FACTS).unlink(missing_ok=True)
    forget(out / FACTS)
    with write_whole(out / VECTORS) as temporary:
        faiss.write_index(index, str(temporary))
    with write_whole(out / ROWS) as temporary, pa.ipc.new_file(str(temporary), table.schema) as file:
        file.write_table(table)
    known = facts_of(embeddings)
    facts = {
        "tool": f"mclip_kit {__version__}",
        "kind": built.kind,
        "width": index.d,
        "rows": index.ntotal,
        "found": built.count,
        "same": built.same,
        "recall": built.recall,
        "embeddings": str(embeddings),
        "model": known.get("model", ""),
        "space": known.get("space", ""),
        "hashes": dict(zip((VECTORS, ROWS), hash_files([out / VECTORS, out / ROWS]), strict=True)),
    }
    write_json(out / FACTS, facts)

"""Reads vectors and what is known of them: those of `embed`, and of other programs, in clip-retrieval's layout.

Shapes: N vectors, D embedding.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mclip_kit.data.arrays import open_array
from mclip_kit.data.content_keys import hash_bytes
from mclip_kit.data.manifest import check_files
from mclip_kit.errors import MALFORMED, DataError, first_line
from mclip_kit.interop.vector_files import IMAGES, METADATA, TEXTS
from mclip_kit.storage import fetch

FACTS = "embeddings.json"
COLUMNS = ("image_path", "caption", "key")  # of metadata/*.parquet that an index keeps
ROWS = pa.schema([("image_path", pa.string()), ("caption", pa.string()), ("content", pa.string())])
"""What an index keeps of a vector: the picture's file, a caption, and a hash of the content."""


def read_vectors(folder: Path, kind: str) -> list[np.ndarray]:
    """Vectors of a kind, memory-mapped float (N, D) each; none if there is no such folder.

    Raises:
        DataError: a file is damaged, or is no array of vectors of the same width.
    """
    arrays: list[np.ndarray] = []
    for file in sorted((folder / kind).glob("*.npy")):
        try:
            array = open_array(file)
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: damaged: {first_line(error)}; embed again") from None
        if array.ndim != 2 or array.dtype.kind != "f":
            raise DataError(f"{file}: {array.dtype} {array.shape}, not float (N, D); embed again")
        if arrays and array.shape[1] != arrays[0].shape[1]:
            raise DataError(f"{file}: {array.shape[1]} numbers a vector, others have {arrays[0].shape[1]}; embed again")
        arrays.append(array)
    return arrays


def read_embeddings(folder: Path) -> tuple[list[np.ndarray], pa.Table]:
    """Vectors of pictures, and a row of `ROWS` for each.

    Raises:
        DataError: they are missing, damaged or do not fit together.
    """
    fetch(folder, (FACTS, "*.npy", "*.parquet"))
    ours = facts_of(folder)
    files = [*(folder / IMAGES).glob("*.npy"), *(folder / METADATA).glob("*.parquet")]
    check_files(folder, [str(file.relative_to(folder)) for file in files], FACTS, "embed again")
    arrays = read_vectors(folder, IMAGES)
    if not arrays or not sum(map(len, arrays)):
        what = "vectors of texts only; an index has those of pictures" if (folder / TEXTS).is_dir() else "no vectors"
        raise DataError(f"{folder}: {what} ({IMAGES}/*.npy is missing); run mclip-kit embed MODEL --images ...")
    count = sum(map(len, arrays))
    paths: list[Any] = []
    captions: list[Any] = []
    keys: list[Any] = []
    for file in sorted((folder / METADATA).glob("*.parquet")):
        try:
            table = pq.read_table(file)
            columns = {name: table[name].to_pylist() for name in table.column_names if name in COLUMNS}
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(f"{file}: damaged: {first_line(error)}; embed again") from None
        nothing = [None] * len(table)
        paths += columns.get("image_path", nothing)
        captions += columns.get("caption", nothing)
        keys += columns.get("key", nothing) if ours else nothing
    if paths and len(paths) != count:
        raise DataError(f"{folder}: {count:,} vectors, but {len(paths):,} rows of {METADATA}; embed again")
    if not paths:
        captions, keys = [None] * count, [None] * count
        paths = [None] * count
    if not all(keys):  # another program's: its `key` may be anything
        keys = [hash_bytes([row.tobytes()]).tobytes().hex() for array in arrays for row in array]
    rows = {
        "image_path": [str(path) if path else f"vector {row}" for row, path in enumerate(paths)],
        "caption": [str(caption or "") for caption in captions],
        "content": list(map(str, keys)),
    }
    return arrays, pa.table(rows, schema=ROWS)


def facts_of(embeddings: Path) -> dict[str, str]:
    """What `embed` wrote of its vectors: `kind`, `model`, `space`; nothing for those of another program.

    Raises:
        DataError: they are damaged, lack a file, or were not finished.
    """
    path = fetch(embeddings / FACTS)
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.get("unfinished"):
            raise DataError(f"{embeddings}: embedding it was interrupted; run mclip-kit embed again, it goes on there")
        gone = next((name for name in dict(found.get("files") or {}) if not (embeddings / name).is_file()), None)
        if gone is not None:
            raise DataError(f"{embeddings / gone}: missing; embed again")
        return {name: found[name] + "" for name in ("kind", "model", "space")}
    except (OSError, *MALFORMED) as error:
        raise DataError(f"{path}: damaged: {first_line(error)}; embed again") from None

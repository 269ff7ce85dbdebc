"""Reads vectors of pictures and their metadata, of `embed` and of other programs that write clip-retrieval's layout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mclip_kit.errors import DataError, first_line
from mclip_kit.features.hashing import hash_bytes
from mclip_kit.interop.vector_files import IMAGES, METADATA, TEXTS
from mclip_kit.search.embed import FACTS


def read_embeddings(folder: Path) -> tuple[list[np.ndarray], pa.Table]:
    """Vectors, memory-mapped float (N, D) each, and metadata with at least the columns image_path and key.

    Raises:
        DataError: they are missing, damaged or do not fit together.
    """
    files = sorted((folder / IMAGES).glob("*.npy"))
    if not files:
        what = "vectors of texts only; an index has those of pictures" if (folder / TEXTS).is_dir() else "no vectors"
        raise DataError(f"{folder}: {what} ({IMAGES}/*.npy is missing); run mclip-kit embed MODEL --images ...")
    try:
        arrays = [np.load(file, mmap_mode="r") for file in files]
        tables = [pq.read_table(file) for file in sorted((folder / METADATA).glob("*.parquet"))]
    except (OSError, ValueError, EOFError, pa.ArrowException) as error:
        raise DataError(f"{folder}: damaged: {first_line(error)}; embed again") from None
    shapes = {array.shape[1:] for array in arrays if array.ndim == 2 and array.dtype.kind == "f"}
    if len(shapes) != 1 or any(array.ndim != 2 or array.dtype.kind != "f" for array in arrays):
        raise DataError(f"{folder / IMAGES}: its files are not all float (N, D) of one width; embed again")
    rows = pa.concat_tables(tables, promote_options="default") if tables else pa.table({})
    count = sum(map(len, arrays))
    if tables and len(rows) != count:
        raise DataError(f"{folder}: {count:,} vectors, but {len(rows):,} rows of metadata; embed again")
    if "image_path" not in rows.column_names:
        names = [f"{file.name}#{row}" for file, array in zip(files, arrays, strict=True) for row in range(len(array))]
        rows = rows.append_column("image_path", pa.array(names))
    if "key" not in rows.column_names:  # of another program
        keys = [hash_bytes([row.tobytes()]).tobytes().hex() for array in arrays for row in array]
        rows = rows.append_column("key", pa.array(keys))
    return arrays, rows


def facts_of(embeddings: Path) -> dict[str, Any]:
    """What `embed` wrote of its vectors; nothing for those of another program."""
    try:
        found: dict[str, Any] = json.loads((embeddings / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found

"""Vectors and their metadata in files, in the layout of clip-retrieval (clip_retrieval/clip_inference/writer.py).

    img_emb/img_emb_0.npy           (R, D), L2-normalised; text_emb/text_emb_0.npy likewise
    metadata/metadata_0.parquet     a row for each of theirs

Shapes: R rows, D embedding.
"""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mclip_kit.errors import CheckpointError

IMAGES, TEXTS, METADATA = "img_emb", "text_emb", "metadata"
ROWS = 1_000_000
"""Rows of a file, as clip-retrieval's own `write_batch_size`."""


class VectorFiles:
    """A file of each kind at a time, to which rows are appended; the next ones start when they are full.

    Args:
        folder: exists.
        kinds: kind of vectors, `img_emb` or `text_emb` -> the column of the metadata that names a row in messages.
        schema: of the metadata.
        width: D.
        dtype: of a stored number, `<f2` or `<f4`.
        most: rows of a file.
        digits: of a file's number.
    """

    def __init__(
        self,
        folder: Path,
        kinds: Mapping[str, str],
        schema: pa.Schema,
        width: int,
        dtype: str = "<f2",
        most: int = ROWS,
        digits: int = 1,
    ) -> None:
        self.folder, self.kinds, self.schema, self.width = folder, kinds, schema, width
        self.dtype, self.most, self.digits = dtype, most, digits
        self.number, self.rows = 0, 0
        self._arrays: list[IO[bytes]] = []

    def __enter__(self) -> "VectorFiles":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.rows:
            self._close()

    def append(self, vectors: Mapping[str, np.ndarray], table: pa.Table) -> None:
        """Write rows.

        Args:
            vectors: kind -> float32 (R, D).
            table: R rows of metadata.
        Raises:
            CheckpointError: a vector is non-finite.
        """
        for kind, values_RD in vectors.items():
            wrong_R = np.flatnonzero(~np.isfinite(values_RD).all(1))
            if len(wrong_R):
                what = table[self.kinds[kind]][int(wrong_R[0])].as_py()
                name = "image" if kind == IMAGES else "text"
                raise CheckpointError(f"the embedding of {name} {what!r} is non-finite (NaN or inf); check the model")
        start = 0
        while start < len(table):
            if not self.rows:
                self._open()
            stop = min(len(table), start + self.most - self.rows)
            for file, kind in zip(self._arrays, self.kinds, strict=True):
                file.write(vectors[kind][start:stop].astype(self.dtype).tobytes())
            self._parquet.write_table(table.slice(start, stop - start))
            self.rows += stop - start
            start = stop
            if self.rows == self.most:
                self._close()

    def _open(self) -> None:
        number = str(self.number).zfill(self.digits)
        for kind in (*self.kinds, METADATA):
            (self.folder / kind).mkdir(exist_ok=True)
        self._arrays = [open(self.folder / kind / f"{kind}_{number}.npy", "wb") for kind in self.kinds]  # noqa: SIM115
        for file in self._arrays:
            np.lib.format.write_array_header_1_0(file, self._header())
        self._parquet = pq.ParquetWriter(self.folder / METADATA / f"{METADATA}_{number}.parquet", self.schema)

    def _header(self) -> dict[str, object]:
        return {"descr": self.dtype, "fortran_order": False, "shape": (self.rows, self.width)}

    def _close(self) -> None:
        for file in self._arrays:
            file.seek(0)  # NumPy keeps room in the header for any number of rows
            np.lib.format.write_array_header_1_0(file, self._header())
            file.close()
        self._parquet.close()
        self.number, self.rows = self.number + 1, 0


def digits_of(rows: int, most: int = ROWS) -> int:
    """Digits of a file's number, as clip-retrieval pads them."""
    return len(str(max(1, -(-rows // most))))

"""How a table stores its items: their width, their type, and the files that hold them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mclip_kit.errors import DataError

Dtype = Literal["fp16", "fp32", "int8", "uint8"]
DTYPES: dict[Dtype, np.dtype[Any]] = {
    "fp16": np.dtype("<f2"),
    "fp32": np.dtype("<f4"),
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
}


class NonfiniteOutput(DataError):
    """A frozen tower's output that cannot be stored; `FrozenTowers` adds which tower's."""


@dataclass(frozen=True)
class ItemFormat:
    """How a table stores its items.

    int8 halves the disk of token states: five captions each of CC3M's 560,000 pictures at about 15 tokens of 768
    numbers take 65 GB in fp16 and 33 GB in int8.

    Attributes:
        width: numbers of an item.
        dtype: type of a stored number; int8 has one float32 scale an item, uint8 holds bytes.
    """

    width: int
    dtype: Dtype

    @property
    def files(self) -> dict[str, int]:
        """The files that hold items, and the bytes that an item takes in each."""
        values = {"values.bin": self.width * DTYPES[self.dtype].itemsize}
        return {**values, "scales.bin": 4} if self.dtype == "int8" else values

    @property
    def item_bytes(self) -> int:
        """Bytes of an item in all files."""
        return sum(self.files.values())

    def encode(self, values_ND: np.ndarray) -> list[bytes]:
        """Items, float (N, width), as bytes for each of `files`.

        Raises:
            NonfiniteOutput: a value is non-finite (NaN or inf), or too large for fp16.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            if self.dtype == "int8":
                scales_N = np.maximum(np.abs(values_ND).max(1), 1e-12) / 127
                stored, more = np.rint(values_ND / scales_N[:, None]), [scales_N.astype("<f4").tobytes()]
            else:
                stored, more = values_ND.astype(DTYPES[self.dtype]), []
        if not np.isfinite(stored).all():
            finite = np.isfinite(values_ND).all()
            if not finite:
                raise NonfiniteOutput("an output is not finite (NaN or inf)")
            raise NonfiniteOutput("an output is too large for fp16: set cache.dtype=fp32")
        return [stored.astype(DTYPES[self.dtype]).tobytes(), *more]

    def decode(self, contents: Sequence[bytes]) -> np.ndarray:
        """The opposite of `encode`: items, float32 (N, width)."""
        values_ND = np.frombuffer(contents[0], DTYPES[self.dtype]).reshape(-1, self.width).astype(np.float32)
        if self.dtype == "int8":
            values_ND *= np.frombuffer(contents[1], "<f4")[:, None]
        return values_ND

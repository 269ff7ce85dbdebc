"""Foreign weight files, read without running what they hold."""

import argparse
import lzma
import pickle
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar

from mclip_kit.errors import CheckpointError, first_line

# What fairseq's files hold besides tensors and plain values: options, and numbers that NumPy computed. Files of
# NumPy 1 name the same function under numpy.core.
ALLOWED: list[Any] = [
    argparse.Namespace,
    (scalar, "numpy.core.multiarray.scalar"),
    (scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("bool", "i4", "i8", "u4", "u8", "f4", "f8")),
]


def read_pickle(path: str | Path) -> Any:
    """The content of a file that torch.save wrote, or of its .xz; tensors on the CPU, memory-mapped where possible.

    Of a TorchScript archive, such as OpenAI's CLIP files, the state dict.

    Raises:
        CheckpointError: missing, damaged, or it needs more than tensors, plain values, options and NumPy numbers; then
            nothing of it was executed.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: missing")
    with _unpacked(path) as plain:
        try:
            if _is_torchscript(plain):
                return torch.jit.load(plain, map_location="cpu").state_dict()
            with torch.serialization.safe_globals(ALLOWED):
                return torch.load(plain, map_location="cpu", weights_only=True, mmap=_can_map(path, plain))
        except pickle.UnpicklingError as error:
            wanted = re.search(r"GLOBAL (\S+)", str(error))
            if wanted:
                raise CheckpointError(
                    f"{path}: refused, and nothing ran: reading it would call {wanted[1]}"
                ) from None
            raise CheckpointError(f"{path}: damaged, or not a file of weights: {first_line(error)}") from None
        except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{path}: damaged, or not a file of weights: {first_line(error)}") from None


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """The file, or a temporary copy of what an .xz holds."""
    if path.suffix != ".xz":
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, path.stem)
        try:
            with lzma.open(path) as source, open(plain, "wb") as target:
                shutil.copyfileobj(source, target)
        except (lzma.LZMAError, EOFError) as error:
            raise CheckpointError(f"{path}: damaged: {first_line(error)}") from None
        yield plain


def _can_map(path: Path, plain: Path) -> bool:
    """Tensors may stay in the file if it is a zip archive that lasts."""
    return path == plain and zipfile.is_zipfile(plain)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())

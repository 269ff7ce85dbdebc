"""Read weight files of other programs without running code that they contain."""

import argparse
import lzma
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from numpy._core.multiarray import _reconstruct, scalar
from safetensors import SafetensorError
from torch import Tensor

from mclip_kit.errors import CheckpointError, first_line
from mclip_kit.files import check_unpacked, check_zip, temporary_folder

BLOCK = 1 << 24  # bytes that are unpacked at once
StateDict = dict[str, Tensor]

# What open_clip, transformers and the libraries below them raise for a file or a config that does not fit.
UNFIT = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, OSError, RuntimeError),
    *(StopIteration, TypeError, ValueError, pickle.UnpicklingError, SafetensorError, StrictDataclassError),
)

# What training checkpoints contain besides tensors and plain values: options, and NumPy's numbers and arrays of numbers
# (learning rates, states of random generators). Files of NumPy 1 name the same functions under numpy.core.
ALLOWED: list[Any] = [
    argparse.Namespace,
    *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("bool", *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)))),
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8")),
]


def read_pickle(path: str | Path) -> Any:
    """The content of a file that torch.save wrote, or of its .xz; tensors on the CPU, memory-mapped where possible.

    For a TorchScript archive, such as OpenAI's CLIP files, the state dict; the code in it is not run.

    Raises:
        CheckpointError: the file is missing or damaged, or it needs more than tensors, plain values, options and NumPy
            scalars; nothing of it was run.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: missing")
    with _unpacked(path) as unpacked:
        try:
            check_whole(unpacked)
            if _is_torchscript(unpacked):
                return _script_weights(unpacked)
            with plain_values():
                return torch.load(unpacked, map_location="cpu", weights_only=True, mmap=_can_map(path, unpacked))
        except Exception as error:  # the pickle reader raises any class on damaged files
            why = refusal(error) or f"damaged, or not a weight file: {first_line(error)}"
            raise CheckpointError(f"{path}: {why}") from None


@contextmanager
def plain_values() -> Iterator[None]:
    """Inside, torch.load with weights_only, here or in another library, reads what `ALLOWED` lists; none of it runs."""
    with torch.serialization.safe_globals(ALLOWED):
        yield


def refusal(error: Exception) -> str:
    """What to say of a file that torch refused because it would run code; empty for other errors."""
    wanted = re.search(r"GLOBAL (\S+)", str(error))
    if not isinstance(error, pickle.UnpicklingError) or not wanted:
        return ""
    return (
        f"refused, because reading it would run {wanted[1]}; nothing was run. If you trust it, write its weights to a "
        "file of their own: content = torch.load(FILE, weights_only=False), then torch.save of content['state_dict'], "
        "or of content.state_dict() if it is a whole model"
    )


def named_tensors(content: Any, where: str | Path) -> StateDict:
    """The content of a weight file, checked to be tensors by name.

    Args:
        where: the file, for messages.
    Raises:
        CheckpointError: the content is not a dict, or an entry is not a tensor.
    """
    if not isinstance(content, dict):
        raise CheckpointError(f"{where}: contains a {type(content).__name__}, not tensors by name")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{where}: its entry {str(name)[:100]!r} is not a tensor")
    return content


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """The file itself, or a temporary file with the content of an .xz."""
    if path.suffix != ".xz":
        yield path
        return
    with temporary_folder() as folder:
        unpacked = folder / path.stem
        try:
            with lzma.open(path) as source, open(unpacked, "wb") as target:
                while block := source.read(BLOCK):
                    target.write(block)
                    check_unpacked(target.tell(), path.stat().st_size)
        except (lzma.LZMAError, EOFError, ValueError) as error:
            raise CheckpointError(f"{path}: damaged: {first_line(error)}") from None
        yield unpacked


def check_whole(path: Path) -> None:
    """ValueError if a zip is a bomb, or a checksum in it is not that of its content; PyTorch does not look at them."""
    if zipfile.is_zipfile(path):
        check_zip(path)
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"the checksum of {damaged} is wrong")


def _can_map(path: Path, unpacked: Path) -> bool:
    """Whether tensors can be memory-mapped: in a zip archive that is not temporary."""
    return path == unpacked and zipfile.is_zipfile(unpacked)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


# Storage classes of TorchScript archives. torch.jit.load is not used: it runs the archive's __setstate__ methods.
SCRIPT_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def _script_weights(path: Path) -> StateDict:
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name))
        return dict(_tensors(_ScriptReader(archive, name).load(), ""))


class _ScriptModule:
    """A module of a TorchScript archive: attributes only, no code."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a module with its own __setstate__")
        vars(self).update(state)


def _tensors(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _ScriptModule):
            yield from _tensors(value, f"{prefix}{name}.")


class _ScriptReader(pickle.Unpickler):
    """Reads the module tree of a TorchScript archive: modules, tensors and plain values."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        super().__init__(archive.open(name))
        self.archive = archive
        self.folder = name.removesuffix("data.pkl")
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The harmless replacement for a global of the archive; the archive cannot change it for later reads."""
        if module.split(".")[0] == "__torch__":
            return type(name, (_ScriptModule,), {})
        if module == "torch" and name in SCRIPT_STORAGES:
            return name
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return partial(_strided)
        if module == "torch.jit._pickle":  # typed lists and typed values
            return partial(_first)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        """The storage that `pid` names, flat."""
        _, kind, key, *_ = pid
        if key not in self.storages:
            content = bytearray(self.archive.read(f"{self.folder}data/{key}"))
            dtype = SCRIPT_STORAGES[kind]
            self.storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return self.storages[key]


def _strided(storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _first(value: Any, *_: Any) -> Any:
    return value

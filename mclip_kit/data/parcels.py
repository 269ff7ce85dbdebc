"""A result on its way from a reader process: its tensors lie in one block of shared memory.

Each block is handed over by a file descriptor, for which the receiver asks the sender, and that has work to do: one of
them for each tensor would take longer than the copy into the block.
"""

import io
import pickle
from functools import cache
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor

from mclip_kit.errors import first_line
from mclip_kit.progress import note

ALIGNED = 64  # bytes, at which tensors start


class Lost(Exception):
    """A result whose reader has ended."""


class _Packer(ForkingPickler):
    """Pickles everything but tensors, which it collects."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []

    def persistent_id(self, thing: Any) -> int | None:
        """The number of a tensor."""
        if type(thing) is not Tensor or thing.layout != torch.strided or thing.device.type != "cpu":
            return None
        self.tensors.append(thing)
        return len(self.tensors) - 1


class _Unpacker(pickle.Unpickler):
    def __init__(self, content: bytes, tensors: list[Tensor]) -> None:
        super().__init__(io.BytesIO(content))
        self._tensors = tensors

    def persistent_load(self, number: Any) -> Tensor:
        """The tensor of a number."""
        return self._tensors[number]


class Parcel:
    """A result or an error; its block is in shared memory, or in the pipe if that has no room.

    It is pickled here, where an error is raised, and not by the queue's thread, which would lose the result.
    """

    def __init__(self, content: Any) -> None:
        held = io.BytesIO()
        packer = _Packer(held)
        packer.dump(content)
        self._content = held.getvalue()
        self._places: list[tuple[int, torch.dtype, tuple[int, ...], tuple[int, ...]]] = []
        end = 0
        for tensor in packer.tensors:
            strides = torch.empty_like(tensor, device="meta").stride()  # channels_last stays
            self._places.append((end, tensor.dtype, tuple(tensor.shape), strides))
            end += -(-tensor.nbytes // ALIGNED) * ALIGNED
        self._has_room = True
        self._block, self._opened = b"", list[Any]()
        if not end:
            return
        block = self._shared(end)
        for tensor, own in zip(packer.tensors, self._views(block), strict=True):
            own.copy_(tensor)
        self._block = bytes(ForkingPickler.dumps(block)) if self._has_room else pickle.dumps(block)

    def _shared(self, size: int) -> Tensor:
        try:
            return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))
        except RuntimeError as error:
            if "shared memory" not in str(error):  # torch's words
                raise
            self._has_room = False
            return torch.empty(size, dtype=torch.uint8)

    def _views(self, block: Tensor) -> list[Tensor]:
        """The tensors, in the block."""
        return [
            block[start : start + shape.numel() * dtype.itemsize].view(dtype).as_strided(shape, strides)
            for start, dtype, sizes, strides in self._places
            for shape in [torch.Size(sizes)]
        ]

    def pin_memory(self) -> "Parcel":
        """The same with tensors in memory from which a GPU can fetch them; the loader's thread calls it."""
        self._opened = [self._load(pin=True)]
        return self

    def open(self) -> Any:
        """The result; an error is raised.

        Raises:
            Lost: its reader has ended.
        """
        if not self._has_room:
            _note_no_room()
        content = self._opened.pop() if self._opened else self._load()
        if isinstance(content, Exception):
            raise content
        return content

    def _load(self, pin: bool = False) -> Any:
        try:
            block = pickle.loads(self._block) if self._block else torch.empty(0, dtype=torch.uint8)
        except (OSError, EOFError) as error:  # the reader hands its shared memory over, and is no more
            raise Lost(f"its result is lost: {first_line(error)}") from None
        return _Unpacker(self._content, self._views(block.pin_memory() if pin else block)).load()


@cache
def _note_no_room() -> None:
    """Say it once."""
    note(
        "the shared memory has no room for what readers send; it takes a slower way: enlarge /dev/shm, as by docker "
        "run --shm-size"
    )

"""Text files and, until the folder is whole, the hashes of their texts beside them, so that each is computed once."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import numpy as np

from mclip_kit.files import write_whole

BLOCK = 4096  # lines that are read at once


def hashes_of(path: Path) -> Path:
    """Where the hashes of a file's texts are: little-endian uint64, one for each line."""
    return path.with_name(f"{path.name}.texthash")


class HashedText:
    """Writes lines and the hashes of their texts; use it as a context.

    Args:
        path: the file.
        text: where the lines go, if not to `path`, and the same for `hashes`.
    """

    def __init__(self, path: Path, text: Path | None = None, hashes: Path | None = None) -> None:
        (text or path).parent.mkdir(parents=True, exist_ok=True)
        self._stack = ExitStack()
        enter = self._stack.enter_context
        self._text = enter(open(text or path, "w", encoding="utf-8", newline="\n", buffering=2**16))  # noqa: SIM115
        self._hashes = enter(open(hashes or hashes_of(path), "wb", buffering=2**16))  # noqa: SIM115

    def write(self, lines: Iterable[str], hashes_N: np.ndarray) -> None:
        """Append lines, with their ends, and the hashes of their texts."""
        self._text.write("".join(lines))
        self._hashes.write(hashes_N.astype("<u8", copy=False).tobytes())

    def __enter__(self) -> "HashedText":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def rewritten(stack: ExitStack, path: Path) -> HashedText:
    """Another version of a file, which takes its place when the stack closes without an error."""
    text, hashes = (stack.enter_context(write_whole(name)) for name in (path, hashes_of(path)))
    return stack.enter_context(HashedText(path, text, hashes))


def hashed_blocks(path: Path) -> Iterator[tuple[list[str], np.ndarray]]:
    """The lines of a file with their ends, at most BLOCK at a time, and the hashes of their texts, uint64 (N,)."""
    with open(path, encoding="utf-8", newline="\n") as handle, open(hashes_of(path), "rb") as hashes:
        while lines := list(islice(handle, BLOCK)):
            yield lines, np.frombuffer(hashes.read(8 * len(lines)), "<u8")

"""Work that a cluster's processes do in tests; they import this module, so it imports little."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partialmethod
from pathlib import Path
from typing import Any

from mclip_kit.errors import DataError


def fails_at(wrong: int, folder: Path, number: int) -> int:
    """A user's mistake."""
    if number == wrong:
        raise DataError(f"{folder}: no such file")
    return number


def dies_at(heavy: int, number: int) -> int:
    """Work for which there is no memory."""
    if number == heavy:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


class DiesOnce:
    """Work whose process is killed at its second item, if none was killed before.

    Args:
        mark: a file that says that a process was killed.
        make, given: see `Engine.map`.
    """

    def __init__(self, mark: Path, make: Callable[..., Any], *given: Any) -> None:
        self.mark, self._work, self._calls = mark, make(*given), 0

    def __call__(self, item: Any) -> Any:
        self._calls += 1
        if self._calls == 2:
            self.die()
        return self._work(item)

    def die(self) -> None:
        with suppress(FileExistsError):
            self.mark.touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)


class DiesInShard(DiesOnce):
    """Work whose process is killed between two blocks of a shard of features, see `small_shards`."""

    def __init__(self, mark: Path, make: Callable[..., Any], *given: Any) -> None:
        from mclip_kit.features.shard_writer import ShardWriter

        small_shards()
        append = ShardWriter.append

        def dying(writer: ShardWriter, *block: Any) -> None:
            if writer.rows:
                self.die()
            append(writer, *block)

        ShardWriter.append = dying  # type: ignore[method-assign]
        super().__init__(mark, make, *given)

    def __call__(self, item: Any) -> Any:
        return self._work(item)


def small_shards() -> None:
    """Tables get shards of 2 kB, and batches are small: several processes share the little that tests have."""
    import torch

    from mclip_kit.features import extract
    from mclip_kit.features.table import Table

    torch.set_num_threads(1)
    Table.__init__ = partialmethod(Table.__init__, shard_bytes=2048)  # type: ignore[method-assign, assignment]
    extract.CPU_PICTURES, extract.TEXTS, extract.TOKENS = 4, 16, 64

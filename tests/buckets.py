"""An object storage in memory, and machines that have copies of it."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mclip_kit.features.copies import VALUES
from mclip_kit.storage import copies
from mclip_kit.urls import ROOT

Machine = Callable[[str], None]


@contextmanager
def in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Machine]]:
    """An empty object storage, and a function that goes to a machine by its name; each has copies of its own."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]

    def go(name: str) -> None:
        monkeypatch.setenv(ROOT, str(folder / name))
        copies._seen.clear()

    go("first")
    yield system, go
    system.store.clear()


def count_brought(system: Any, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each object is brought from now on."""
    counts: Counter[str] = Counter()
    get = type(system).get_file

    def counted(self: Any, remote: str, local: str, **options: Any) -> None:
        counts[remote] += 1
        get(self, remote, local, **options)

    monkeypatch.setattr(type(system), "get_file", counted)
    return counts


def values(brought: Counter[str]) -> dict[str, int]:
    """How often the values of each shard were brought."""
    return {name.split("/")[-2]: count for name, count in brought.items() if name.split("/")[-1] in VALUES}

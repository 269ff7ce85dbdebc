"""Buckets for tests: in memory, and machines that have copies of what is in them."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mclip_kit import urls
from mclip_kit.features.copies import VALUES
from mclip_kit.storage import copies

Machine = Callable[[str], None]
"""Goes to a machine, by its name."""


def new_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go on as on a machine that has no copies; returns where it has them."""
    monkeypatch.setenv(urls.ROOT, str(folder))
    copies._seen.clear()
    return urls.root()


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty object storage in memory, and a machine without copies."""
    with in_memory(tmp_path, monkeypatch) as (system, machine):
        machine("copies")
        yield system


@contextmanager
def in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Machine]]:
    """An empty object storage in memory, and how to go from one machine to another; each has copies of its own."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]

    def go(name: str) -> None:
        new_machine(folder / name, monkeypatch)

    go("first")
    yield system, go
    system.store.clear()
    copies._seen.clear()


def contents(system: Any, place: str) -> dict[str, bytes]:
    """Name of each object below a place -> its bytes."""
    return {name.removeprefix(place).strip("/"): system.cat_file(name) for name in system.find(place)}


def count_brought(system: Any, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each object is brought from now on."""
    counts: Counter[str] = Counter()
    get = type(system).get_file

    def counted(self: Any, remote: str, local: str, **options: Any) -> None:
        counts[remote] += 1
        get(self, remote, local, **options)

    monkeypatch.setattr(type(system), "get_file", counted)
    return counts


def values_brought(brought: Counter[str]) -> dict[str, int]:
    """How often the values of each shard were brought."""
    return {name.split("/")[-2]: count for name, count in brought.items() if name.split("/")[-1] in VALUES}

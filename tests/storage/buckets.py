"""Buckets for tests: in memory, and machines that have copies of what is in them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mclip_kit import urls
from mclip_kit.storage import copies


def new_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go on as on a machine that has no copies; returns where it has them."""
    monkeypatch.setenv(urls.ROOT, str(folder))
    copies._seen.clear()
    return urls.root()


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty object storage in memory, and a machine without copies."""
    new_machine(tmp_path / "copies", monkeypatch)
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()
    copies._seen.clear()


def contents(system: Any, place: str) -> dict[str, bytes]:
    """Name of each object below a place -> its bytes."""
    return {name.removeprefix(place).strip("/"): system.cat_file(name) for name in system.find(place)}

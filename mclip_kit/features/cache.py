"""Frozen means computed once: the tables of features under one root.

A table belongs to all that makes its features what they are - tower, weights, preprocessing, precision - and a row in
it to an input's content. Change any, and it is computed anew; keep all, and it is found, by any recipe.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mclip_kit.features import hashing
from mclip_kit.features.shards import Dtype, Layout
from mclip_kit.features.table import Table
from mclip_kit.files import write_json


class FeatureCache:
    """Tables by what they hold.

    Args:
        root: the cache's folder; without one, features last as long as the store does, in float32.
        dtype: how frozen towers' outputs are stored; int8 is for token states, the others are fp16 then.
        precision: the type in which towers compute, by autocast where it is not float32.
        share, shares: this process's number, and how many fill together.
        tokens: whether token states are kept too.
        workers: processes that decode pictures.
        log: takes a line about what is computed and kept.
    """

    def __init__(
        self,
        root: Path | None = None,
        dtype: Dtype = "fp16",
        precision: torch.dtype = torch.float32,
        share: int = 0,
        shares: int = 1,
        tokens: bool = True,
        workers: int = 0,
        log: Callable[[str], None] = tqdm.write,
    ) -> None:
        self.root, self.dtype, self.precision = root, dtype, precision
        self.share, self.shares, self.tokens = share, shares, tokens
        self.workers, self.log = workers, log
        self.trained: frozenset[str] = frozenset()
        """Towers whose features do not last: they change with every step."""
        self._temporary = tempfile.TemporaryDirectory(prefix="mclip_kit-")
        self._tables: dict[str, Table] = {}

    def lasts(self, tower: str) -> bool:
        """Whether what a tower gives is kept for later."""
        return self.root is not None and tower not in self.trained

    @property
    def files(self) -> Path:
        """What is known of picture files' contents."""
        return (self.root or Path(self._temporary.name)) / "files.sqlite"

    def table(self, tower: str, kind: str, width: int, facts: Callable[[], dict[str, Any]]) -> Table:
        """The table for one kind of output of a tower.

        Args:
            tower: whose outputs these are; its facts are asked for once, until it is forgotten.
            kind: what they are, for people: the start of the folder's name.
            width: numbers an item.
            facts: all that decides them besides, as plain values.
        """
        name = f"{tower} {kind}"
        if name not in self._tables:
            lasts = self.lasts(tower)
            self._tables[name] = self._lasting(kind, width, facts()) if lasts else self._passing(name, kind, width)
        return self._tables[name]

    def _lasting(self, kind: str, width: int, facts: dict[str, Any]) -> Table:
        assert self.root is not None
        dtype: Dtype = "fp16" if self.dtype == "int8" and kind != "tokens" else self.dtype
        facts = {"kind": kind, "width": width, "dtype": dtype, **facts}
        named = facts.pop("named", "")
        folder = self.root / f"{kind}-{hashing.of_tower(facts)}"
        table = Table(folder, Layout(width, dtype), f"{kind} features", log=self.log)
        if not (folder / "table.json").is_file():
            write_json(folder / "table.json", {**facts, "named": named})
        with suppress(OSError):  # a cache of others may be read
            os.utime(folder / "table.json")  # when it was used last
        return table

    def _passing(self, name: str, kind: str, width: int) -> Table:
        folder = Path(self._temporary.name, name.replace(" ", "-"))
        return Table(folder, Layout(width, "fp32"), f"{kind} features", log=lambda line: None)

    def forget(self, tower: str) -> None:
        """Drop what a tower gave that was not to last, and what is known of its weights."""
        for name in [name for name in self._tables if name.split()[0] == tower]:
            del self._tables[name]
            shutil.rmtree(Path(self._temporary.name, name.replace(" ", "-")), ignore_errors=True)

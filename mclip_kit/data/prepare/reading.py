"""Reads, cleans and hashes the rows of a corpus a block at a time, in this process or in worker processes.

A block is the same whoever made it, and blocks come in the order of the rows.
"""

import marshal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np

from mclip_kit.data.corpora import Content, Corpus, Parts, Row
from mclip_kit.data.corpora.account import Account, RecordedAccount
from mclip_kit.data.prepare.cleaning import Cleaner
from mclip_kit.data.prepare.hashes import hash_texts
from mclip_kit.engine.base import Engine

BLOCK = 2**11  # most rows of a block
MOST = 2**24  # bytes of pictures with which a block is full

Text = tuple[str, str, str]
"""The language, the cleaned text, and why it is left out; empty if it is kept."""


class CleanRow(NamedTuple):
    """A `Row` whose texts are cleaned; see there."""

    split: str
    texts: list[Text]
    image: str | None
    file: str | None
    content: bytes | None
    parallel: bool
    group: int | None
    stratum: str


@dataclass(slots=True)
class Block:
    """Rows that are cleaned, in their order.

    Attributes:
        events: a tuple, the values of a `CleanRow`, or a list: what `RecordedAccount` recorded between the rows.
        hashes_N: of all texts of the rows, uint64.
        rows: number of rows.
        error: what was raised after them.
    """

    events: list[tuple[Any, ...] | list[Any]]
    hashes_N: np.ndarray
    rows: int
    error: Exception | None = None


class RowCleaner:
    """Cleans and hashes rows.

    Args:
        corpus: cleaning and languages.
    """

    def __init__(self, corpus: Corpus) -> None:
        self._cleaner = Cleaner(corpus.cleaning, [*corpus.languages, *corpus.caption_languages])

    def blocks(self, read: Callable[[Account], Iterator[Row]]) -> Iterator[Block]:
        """The blocks of some rows; the last one has the error that ended them, if there was one.

        Args:
            read: gives the rows, and counts in an account what it does not take.
        """
        account = RecordedAccount()
        rows = read(account)
        going = True
        while going:
            texts: list[str] = []
            count, size, error, going = 0, 0, None, False
            try:
                for row in rows:
                    account.events.append(self._clean(row, account, texts))
                    count += 1
                    size += len(row.content or b"")
                    if count == BLOCK or size > MOST:
                        going = True
                        break
            except Exception as raised:
                error = raised
            yield Block(account.take(), hash_texts(texts), count, error)

    def _clean(self, row: Row, account: RecordedAccount, all_texts: list[str]) -> tuple[Any, ...]:
        cleaner, texts = self._cleaner, []
        for language, text in row.texts:
            clean = cleaner.text(text)
            texts.append((language, clean, cleaner.problem(language, clean)))
            all_texts.append(clean)
        if cleaner.counts:
            for reason, count in cleaner.counts.items():
                account.count_text(reason, count)
            cleaner.counts.clear()
        return row.split, texts, row.image, row.file, row.content, row.parallel, row.group, row.stratum


def read_blocks(content: Content, corpus: Corpus, account: Account, engine: Engine) -> Iterator[Block]:
    """All rows of a corpus as blocks; what a reader does not take is among their events.

    Args:
        account: in which readers count that have no `Parts`.
        engine: runs the processes that read `Parts`.
    Raises:
        DataError: a worker process was killed.
    """
    cleaner, parts = RowCleaner(corpus), content.parts
    if parts is None:
        yield from cleaner.blocks(lambda _: iter(content.rows))
        return
    items = iter(parts.items)
    for item in items if engine.alone else islice(items, parts.few):
        rows = 0
        for block in cleaner.blocks(lambda recorded, item=item: parts.read(item, recorded)):  # type: ignore[misc]
            rows += block.rows
            yield block
        parts.after(item, rows)
    first = list(islice(items, 1))
    if first:
        yield from _in_processes(parts, chain(first, items), corpus, engine)
    parts.finish()


def _in_processes(parts: Parts, items: Iterator[Any], corpus: Corpus, engine: Engine) -> Iterator[Block]:
    """The blocks of some items."""
    given: list[Any] = []

    def noted() -> Iterator[Any]:
        for item in items:
            given.append(item)
            yield item

    with engine.map(PartCleaner, parts.read, corpus) as clean:
        for found in clean(noted()):
            rows = 0
            for block in map(_unpacked, found):
                rows += block.rows
                yield block
            parts.after(given.pop(0), rows)


class PartCleaner:
    """What a worker process does: it reads, cleans and hashes an item of `Parts`.

    Args:
        read: `Parts.read`.
        corpus: see `RowCleaner`.
    """

    def __init__(self, read: Callable[[Any, Account], Iterator[Row]], corpus: Corpus) -> None:
        self._read, self._cleaner = read, RowCleaner(corpus)

    def __call__(self, item: Any) -> list[tuple[bytes, bytes, int, Exception | None]]:
        """The blocks of an item; `marshal` packs rows in a tenth of the time that `pickle` takes."""
        return [_packed(block) for block in self._cleaner.blocks(lambda account: self._read(item, account))]


def _packed(block: Block) -> tuple[bytes, bytes, int, Exception | None]:
    return marshal.dumps(block.events), block.hashes_N.tobytes(), block.rows, block.error


def _unpacked(packed: tuple[bytes, bytes, int, Exception | None]) -> Block:
    events, hashes, rows, error = packed
    return Block(marshal.loads(events), np.frombuffer(hashes, "<u8"), rows, error)

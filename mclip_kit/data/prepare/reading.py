"""Reads, cleans and hashes the rows of a corpus a block at a time, in this process or in worker processes.

A block is the same whoever made it, and blocks come in the order of the rows.
"""

import sys
from collections.abc import Callable, Iterator
from itertools import chain, islice
from operator import attrgetter
from typing import Any

from mclip_kit.data.corpora import Content, Corpus, Parts, Row
from mclip_kit.data.corpora.account import Account, RecordedAccount
from mclip_kit.data.hashes import hash_texts
from mclip_kit.data.prepare.block import NO_DRAWS, OF_ROWS, OF_TEXTS, Block, Packed, unpacked
from mclip_kit.data.prepare.cleaning import Cleaner
from mclip_kit.data.prepare.splits import draw_numbers
from mclip_kit.engine.base import Engine

BLOCK = 2**11  # most rows of a block
MOST = 2**24  # bytes of pictures with which a block is full
CELLS = attrgetter("split", "image", "file", "content", "parallel", "group", "stratum")


class RowCleaner:
    """Cleans and hashes rows.

    Args:
        corpus: cleaning, languages, and whether splits are drawn.
    """

    def __init__(self, corpus: Corpus) -> None:
        self._cleaner = Cleaner(corpus.cleaning, [*corpus.languages, *corpus.caption_languages])
        self._drawn = bool(corpus.splits)

    def blocks(self, read: Callable[[Account], Iterator[Row]]) -> Iterator[Block]:
        """The blocks of some rows; the last one has the error that ended them, if there was one.

        Args:
            read: gives the rows, and counts in an account what it does not take.
        """
        account = RecordedAccount()
        rows = read(account)
        going = True
        while going:
            cells: list[tuple[Any, ...]] = []
            texts: list[tuple[str, str, str]] = []
            size, error, going = 0, None, False
            try:
                for row in rows:
                    texts += self._clean(row, account)
                    cells.append((*CELLS(row), len(row.texts)))
                    account.rows += 1
                    size += len(row.content or b"")
                    if account.rows == BLOCK or size > MOST:
                        going = True
                        break
            except Exception as raised:
                error = raised
            yield self._block(cells, texts, account.take(), error)

    def _clean(self, row: Row, account: RecordedAccount) -> list[tuple[str, str, str]]:
        """The language, the cleaned text, and why it is left out, of each text of a row."""
        cleaner, texts = self._cleaner, []
        for language, text in row.texts:
            clean = cleaner.text(text)
            texts.append((language, clean, cleaner.problem(language, clean)))
        if cleaner.counts:
            for reason, count in cleaner.counts.items():
                account.count_text(reason, count)
            cleaner.counts.clear()
        return texts

    def _block(self, cells: list[Any], texts: list[Any], events: list[Any], error: Exception | None) -> Block:
        columns = [*zip(*cells, strict=True)] or [()] * len(OF_ROWS)
        columns += [*zip(*texts, strict=True)] or [()] * len(OF_TEXTS)
        named = dict(zip((*OF_ROWS, *OF_TEXTS), columns, strict=True))
        block = Block(**named, hashes_N=hash_texts(named["texts"]), draws_N=NO_DRAWS, events=events, error=error)
        if self._drawn and "" in block.splits:
            items = zip(block.images, block.texts_of_rows(), strict=True)
            block.draws_N = draw_numbers(
                [(image, block.texts[own.start : own.stop]) for image, own in items], block.hashes_N
            )
        return block


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
    items, many = iter(parts.items), False
    if not engine.alone and parts.few < sys.maxsize:
        items, many = _are_more(items, parts.few)
    if many:
        yield from _in_processes(parts, items, corpus, engine)
    for item in () if many else items:
        rows = 0
        for block in cleaner.blocks(lambda recorded, item=item: parts.read(item, recorded)):  # type: ignore[misc]
            rows += block.rows
            yield block
        parts.after(item, rows)
    parts.finish()


def _are_more(items: Iterator[Any], few: int) -> tuple[Iterator[Any], bool]:
    """The items, and whether they are more than a few; an error in reading one comes after the items before it."""
    first: list[Any] = []

    def then_raise(error: Exception) -> Iterator[Any]:
        yield from first
        raise error

    try:
        for item in islice(items, few + 1):
            first.append(item)  # one by one: those before an error are kept
    except Exception as error:
        return then_raise(error), False
    return chain(first, items), len(first) > few


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
            for block in map(unpacked, found):
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

    def __call__(self, item: Any) -> list[Packed]:
        """The blocks of an item."""
        return [block.packed() for block in self._cleaner.blocks(lambda account: self._read(item, account))]

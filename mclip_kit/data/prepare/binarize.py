"""Parallel text to fairseq's binarised form, in bulk: blocks of lines, worker processes, constant memory."""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import compress, islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from mclip_kit.data import fairseq_io
from mclip_kit.data.bitext import raw_text
from mclip_kit.data.corpora import Cleaning
from mclip_kit.data.leakage import hash_texts
from mclip_kit.data.prepare.workers import follow_parent
from mclip_kit.data.tokenizer import XlmrTokenizer
from mclip_kit.errors import DataError
from mclip_kit.files import write_whole

BLOCK = 2**11  # lines a side that are encoded at once
LARGE = 2**18  # lines from which on worker processes pay

Block = tuple[bytes, bytes]
"""As many lines of both sides."""
Mapped = Callable[[Iterable[Block]], Iterator[Any]]
"""Encodes blocks, in order."""


@dataclass(frozen=True)
class Encoded:
    """One side of a block.

    Attributes:
        ids, sizes_N: as `XlmrTokenizer.encode_flat` gives them.
        text: its lines.
        hashes_N: of the lines, for the leakage guard.
    """

    ids: np.ndarray
    sizes_N: np.ndarray
    text: bytes
    hashes_N: np.ndarray


def binarize(
    pairs: list[tuple[Path, Path]], tokenizer: XlmrTokenizer, cleaning: Cleaning, lines: int, workers: int | None = None
) -> Iterator[int]:
    """Write `.bin` and `.idx` beside the text of parallel sides, and hashes of the text.

    Args:
        pairs: the two prefixes of each. Their text is at `raw_text(prefix)`, hashes of it go to `hashes(prefix)`.
        tokenizer: of both sides.
        cleaning: `max_tokens` and `too_long`; where pairs are dropped, so are their lines of text.
        lines: how many there are in all, for the progress bar and to decide on worker processes.
        workers: processes; None: the computer's cores.
    Yields:
        For each pair, when it is whole: how many of its sentences were cut, or pairs dropped.
    """
    drop = cleaning.too_long == "drop"
    vocabulary = tokenizer.vocabulary - 1  # fairseq's dictionary has no <mask>
    with (
        _pool(tokenizer, (cleaning.max_tokens, drop), workers or os.cpu_count() or 1, lines) as encode,
        tqdm(total=lines, desc="binarising", unit="line", unit_scale=True, dynamic_ncols=True) as bar,
    ):
        for prefixes in pairs:
            too_long = 0
            for encoded, count in _blocks(prefixes, vocabulary, encode, drop):
                too_long += count
                bar.update(len(encoded) * len(encoded[0].sizes_N))
            yield too_long


def _blocks(
    prefixes: tuple[Path, Path], vocabulary: int, encode: Mapped, rewrite: bool
) -> Iterator[tuple[list[Encoded], int]]:
    """Encode and write the blocks of one pair, and pass them on."""
    with ExitStack() as stack:
        writers = [stack.enter_context(fairseq_io.writing(prefix, vocabulary)) for prefix in prefixes]
        sides = [stack.enter_context(open(raw_text(prefix), "rb")) for prefix in prefixes]
        hashed = [_opened(stack, hashes(prefix)) for prefix in prefixes]
        texts = [_opened(stack, raw_text(prefix)) for prefix in prefixes] if rewrite else []
        for encoded, too_long in encode(_read(sides)):
            for number, side in enumerate(encoded):
                writers[number].add(side.ids, side.sizes_N)
                hashed[number].write(side.hashes_N.data)
                if texts:
                    texts[number].write(side.text)
            yield encoded, too_long


def hashes(prefix: Path) -> Path:
    """Where a binarised side's hashes wait for the leakage guard."""
    return fairseq_io.suffixed(prefix, "hashes")


def _opened(stack: ExitStack, path: Path) -> IO[bytes]:
    return stack.enter_context(open(stack.enter_context(write_whole(path)), "wb"))


def _read(sides: list[Any]) -> Iterator[Block]:
    while True:
        left, right = (b"".join(islice(side, BLOCK)) for side in sides)
        if not left:
            return
        yield left, right


_tokenizer: XlmrTokenizer
"""A worker process's, which it loads once."""


def _start(path: Path) -> None:
    global _tokenizer
    follow_parent()
    _tokenizer = XlmrTokenizer(path)


def _work(max_tokens: int, drop: bool, block: Block) -> tuple[list[Encoded], int]:
    return _encode(_tokenizer, max_tokens, drop, block)


def _encode(tokenizer: XlmrTokenizer, max_tokens: int, drop: bool, block: Block) -> tuple[list[Encoded], int]:
    """Both sides of a block, and how many of its texts are too long: they are cut, or dropped with their pairs."""
    texts = [side.decode().split("\n")[:-1] for side in block]
    coded = [tokenizer.encode_flat(lines, sys.maxsize if drop else max_tokens) for lines in texts]
    if not drop:
        sides = zip(coded, block, texts, strict=True)
        cut = sum(count for _, _, count in coded)
        return [Encoded(ids, sizes_N, text, hash_texts(lines)) for (ids, sizes_N, _), text, lines in sides], cut
    fits_N = np.logical_and(*(sizes_N < max_tokens for _, sizes_N, _ in coded))
    kept = [_fitting(ids, sizes_N, lines, fits_N) for (ids, sizes_N, _), lines in zip(coded, texts, strict=True)]
    return kept, int((~fits_N).sum())


def _fitting(ids: np.ndarray, sizes_N: np.ndarray, lines: list[str], fits_N: np.ndarray) -> Encoded:
    """A side's sentences whose pairs are short enough."""
    kept = list(compress(lines, fits_N))
    text = "".join(f"{line}\n" for line in kept).encode()
    return Encoded(ids[np.repeat(fits_N, sizes_N)], sizes_N[fits_N], text, hash_texts(kept))


@contextmanager
def _pool(tokenizer: XlmrTokenizer, rules: tuple[int, bool], workers: int, lines: int) -> Iterator[Mapped]:
    """What encodes blocks, in order: in threads, or for many lines in processes, as most of the rest is Python."""
    if lines < LARGE or workers == 1:
        with ThreadPoolExecutor(workers) as threads:
            yield partial(_ahead, threads, 2 * workers, partial(_encode, tokenizer, *rules))
    else:
        from concurrent.futures import ProcessPoolExecutor  # here, for a small corpus does without multiprocessing

        with ProcessPoolExecutor(workers, initializer=_start, initargs=(tokenizer.path,)) as processes:
            try:
                yield partial(_ahead, processes, 2 * workers, partial(_work, *rules))
            except BrokenExecutor:
                raise DataError(
                    "a worker process was killed, as happens for want of memory; prepare again with fewer --workers"
                ) from None


def _ahead(pool: Executor, ahead: int, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """As pool.map, which would read all items at once; a few are under way at any time."""
    waiting: deque[Any] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()

"""Encodes parallel text into fairseq's binarised form: blocks of lines, worker processes, constant memory."""

import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import compress, islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from mclip_kit.data import fairseq_io
from mclip_kit.data.bitext import raw_text
from mclip_kit.data.corpora import Cleaning
from mclip_kit.data.hashes import hash_texts
from mclip_kit.data.prepare.fingerprints import side_hashes
from mclip_kit.data.tokenizer import UNK, XlmrTokenizer
from mclip_kit.engine import base
from mclip_kit.engine.base import Engine, map_ahead
from mclip_kit.engine.local import engine_of
from mclip_kit.files import write_whole
from mclip_kit.progress import tqdm

BLOCK = 2**11  # lines a side that are encoded at once
LARGE = 2**18  # from this many lines on, worker processes are faster than threads

Block = tuple[bytes, bytes]
"""The same number of lines from both sides."""
EncodeBlocks = Callable[[Iterable[Block]], Iterator[Any]]
"""Encodes blocks; the results come in order."""


@dataclass
class PairCounts:
    """What was counted in one pair.

    Attributes:
        too_long: sentences that were cut, or pairs that were dropped.
        pieces, unknown: number of pieces of each side, and how many of them are `<unk>`.
    """

    too_long: int = 0
    pieces: tuple[int, int] = (0, 0)
    unknown: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class EncodedSide:
    """One side of a block.

    Attributes:
        ids, sizes_N: as `XlmrTokenizer.encode_flat` returns them.
        text: its lines.
        hashes_N: of the lines, for the leakage check.
    """

    ids: np.ndarray
    sizes_N: np.ndarray
    text: bytes
    hashes_N: np.ndarray

    @property
    def pieces(self) -> int:
        """Number of pieces, without the `</s>` of each sentence."""
        return len(self.ids) - len(self.sizes_N)

    @property
    def unknown(self) -> int:
        """How many of them are `<unk>`."""
        return int(np.count_nonzero(self.ids == UNK))


def binarize(
    pairs: list[tuple[Path, Path]],
    tokenizer: XlmrTokenizer,
    cleaning: Cleaning,
    lines: int,
    workers: int | Engine | None = None,
) -> Iterator[PairCounts]:
    """Write `.bin` and `.idx` next to the text of parallel sides, and hashes of the text.

    Args:
        pairs: the two prefixes of each pair. Their text is at `raw_text(prefix)`; its hashes go to
            `side_hashes(prefix)`.
        tokenizer: of both sides.
        cleaning: `max_tokens` and `too_long`; if pairs are dropped, their lines of text are removed too.
        lines: their number over all sides; for the progress bar, and to choose between threads and processes.
        workers: as of `prepare`.
    Yields:
        For each pair, after it is written whole, its counts.
    Raises:
        DataError: a worker process was killed.
    """
    drop = cleaning.too_long == "drop"
    vocabulary = tokenizer.vocabulary - 1  # fairseq's dictionary has no <mask>
    with (
        _pool(tokenizer, (cleaning.max_tokens, drop), engine_of(workers), lines) as encode,
        tqdm(total=lines, desc="binarising", unit="line", unit_scale=True, dynamic_ncols=True) as bar,
    ):
        for prefixes in pairs:
            counts = PairCounts()
            for encoded, too_long in _write_pair(prefixes, vocabulary, encode, drop):
                left, right = encoded
                counts.too_long += too_long
                counts.pieces = counts.pieces[0] + left.pieces, counts.pieces[1] + right.pieces
                counts.unknown = counts.unknown[0] + left.unknown, counts.unknown[1] + right.unknown
                bar.update(len(encoded) * len(left.sizes_N))
            yield counts


def _write_pair(
    prefixes: tuple[Path, Path], vocabulary: int, encode: EncodeBlocks, rewrite_text: bool
) -> Iterator[tuple[list[EncodedSide], int]]:
    """Encode and write the blocks of one pair; yield each block after it is written."""
    with ExitStack() as stack:
        writers = [stack.enter_context(fairseq_io.sentence_writer(prefix, vocabulary)) for prefix in prefixes]
        sides = [stack.enter_context(open(raw_text(prefix), "rb")) for prefix in prefixes]
        hashes = [_open_whole(stack, side_hashes(prefix)) for prefix in prefixes]
        texts = [_open_whole(stack, raw_text(prefix)) for prefix in prefixes] if rewrite_text else []
        for encoded, too_long in encode(_read_blocks(sides)):
            for number, side in enumerate(encoded):
                writers[number].add(side.ids, side.sizes_N)
                hashes[number].write(side.hashes_N.data)
                if texts:
                    texts[number].write(side.text)
            yield encoded, too_long


def _open_whole(stack: ExitStack, path: Path) -> IO[bytes]:
    """A file for writing that takes its name when the stack closes without an error."""
    return stack.enter_context(open(stack.enter_context(write_whole(path)), "wb"))


def _read_blocks(sides: list[Any]) -> Iterator[Block]:
    while True:
        left, right = (b"".join(islice(side, BLOCK)) for side in sides)
        if not left:
            return
        yield left, right


def _encoder(path: Path, max_tokens: int, drop: bool) -> Callable[[Block], Any]:
    """What a worker process does, which loads the tokenizer once."""
    return partial(_encode, XlmrTokenizer(path), max_tokens, drop)


def _encode(tokenizer: XlmrTokenizer, max_tokens: int, drop: bool, block: Block) -> tuple[list[EncodedSide], int]:
    """Encode both sides of a block; too long texts are cut and counted, or their pairs are dropped and counted."""
    texts = [side.decode().split("\n")[:-1] for side in block]
    coded = [tokenizer.encode_flat(lines, sys.maxsize if drop else max_tokens) for lines in texts]
    if not drop:
        sides = zip(coded, block, texts, strict=True)
        cut = sum(count for _, _, count in coded)
        return [EncodedSide(ids, sizes_N, text, hash_texts(lines)) for (ids, sizes_N, _), text, lines in sides], cut
    fits_N = np.logical_and(*(sizes_N < max_tokens for _, sizes_N, _ in coded))
    kept = [_select(ids, sizes_N, lines, fits_N) for (ids, sizes_N, _), lines in zip(coded, texts, strict=True)]
    return kept, int((~fits_N).sum())


def _select(ids: np.ndarray, sizes_N: np.ndarray, lines: list[str], fits_N: np.ndarray) -> EncodedSide:
    """The sentences of a side that belong to pairs that fit."""
    kept = list(compress(lines, fits_N))
    text = "".join(f"{line}\n" for line in kept).encode()
    return EncodedSide(ids[np.repeat(fits_N, sizes_N)], sizes_N[fits_N], text, hash_texts(kept))


@contextmanager
def _pool(tokenizer: XlmrTokenizer, rules: tuple[int, bool], engine: Engine, lines: int) -> Iterator[EncodeBlocks]:
    """Encode blocks in threads, or for many lines in processes, because only SentencePiece runs without the GIL."""
    if lines < LARGE or engine.alone:
        workers = base.threads(engine)
        with ThreadPoolExecutor(workers) as threads:
            yield partial(map_ahead, lambda block: threads.submit(_encode, tokenizer, *rules, block), 2 * workers)
    else:
        with engine.map(_encoder, tokenizer.path, *rules) as encode:
            yield encode

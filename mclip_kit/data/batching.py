"""The order of training rows: sampling of languages by temperature, and batches of rows with similar lengths.

Everything is a pure function of (seed, epoch), so a run needs only the step number to resume.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mclip_kit.data.row_files import ColumnWriter, Ragged, once, open_folder
from mclip_kit.data.sequences import blocks_of
from mclip_kit.data.tokenizer import PAD
from mclip_kit.errors import DataError, DiskError
from mclip_kit.urls import is_copy

EPOCH = "epoch"  # how names of folders of kept epochs start
SHARED = 2**17  # rows from which on an epoch is kept
WINDOW = 50  # the rows of so many batches are sorted by length together: little padding, and still well mixed
BLOCKS = 4  # of adjacent rows, of each corpus and language, that a shuffle window takes from


def _smallest(size: int) -> type:
    """A type of numbers of so many rows."""
    return np.int32 if size < 2**31 else np.int64


@dataclass(frozen=True)
class Plan:
    """The batches of a stage.

    Attributes:
        languages_N: int, the language of each row.
        lengths_N: int, tokens of each row; rows of similar length share a batch.
        batch_size: rows a batch, over all processes; if `tokens` is given, the rows of a batch are a multiple of it.
        temperature: a language is drawn with probability ~ rows^(1/temperature); 1 keeps its share of the rows.
        sources_N: int, the corpus of each row; None: all are from one corpus.
        weights: share of each corpus, in any unit; None: its number of rows.
        monolingual: every batch has rows of one language only.
        seed: of all random draws.
        tokens: most tokens a batch, padding included: rows times longest row; None: `batch_size` rows a batch.
        kept: a folder that belongs to these rows alone: one process draws an epoch, and all others map it.
        window: an epoch is random within so many rows; None: within all. Blocks of adjacent rows come in random order,
            and the rows of the blocks of a window are mixed: CorgiPile (Xu et al., arXiv 2206.05830, section 4), here
            for each corpus and language, so that every window has them in their shares.
    """

    languages_N: np.ndarray
    lengths_N: np.ndarray
    batch_size: int
    temperature: float = 1.0
    monolingual: bool = False
    seed: int = 1
    sources_N: np.ndarray | None = None
    weights: Sequence[float] | None = None
    tokens: int | None = None
    kept: Path | None = None
    window: int | None = None

    @cached_property
    def per_epoch(self) -> int:
        """Number of batches of an epoch."""
        if self.tokens is None:  # nothing is drawn for it
            return sum(rows // self.batch_size for rows in self._rows_of_an_epoch())
        return max(1, int(self.lengths_N.sum()) // self.tokens)

    def _rows_of_an_epoch(self) -> Collection[int]:
        """How many rows an epoch has of what fills batches together: of each language, or of all."""
        if self._has_all_rows_once:
            own_N = self.languages_N
            return np.unique(own_N, return_counts=True)[1].tolist() if self.monolingual else [len(own_N)]
        wanted: Counter[int] = Counter()
        for group, want in self._groups():
            wanted[int(self.languages_N[group[0]]) if self.monolingual else 0] += want
        return wanted.values()

    @property
    def _has_all_rows_once(self) -> bool:
        """Whether the rows of an epoch are all rows, each once."""
        return self.window is None and self.temperature == 1 and self.weights is None

    def epoch(self, number: int) -> Sequence[np.ndarray]:
        """The batches of an epoch, each the row numbers as int (batch_size,).

        An epoch has as many rows as the data, without those that do not fill a batch.
        """
        kept = self.kept
        if kept is None or is_copy(kept) or len(self.languages_N) < SHARED:
            return self._epoch(number)
        name = f"{EPOCH}-{self._identity()}"

        def write(part: Path) -> None:
            for old in {*kept.glob(f"{EPOCH}-*")} - {kept / f"{name}-{number - 1}"}:
                shutil.rmtree(old, ignore_errors=True)
            self._write(part, number)

        try:
            columns = open_folder(once(kept / f"{name}-{number}", write))[1]
            return Ragged(columns["rows"], columns["ends"])
        except (DataError, DiskError, KeyError):  # damaged, removed by another run on the same rows, cannot be kept;
            return self._epoch(number)  # or no batch is full

    def _identity(self) -> str:
        """A hash of everything but the rows that decides an epoch."""
        facts = [self.batch_size, self.temperature, self.monolingual, self.seed, self.weights, self.tokens, self.window]
        return hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()

    def _write(self, folder: Path, number: int) -> None:
        batches, end = self._epoch(number), 0
        with ColumnWriter(folder, {}) as writer:
            for part in blocks_of(len(batches), 256):
                ends = end + np.cumsum([len(batch) for batch in batches[part]], dtype=np.int64)
                writer.add("rows", np.concatenate(batches[part]))
                writer.add("ends", ends)
                end = int(ends[-1])

    def _epoch(self, number: int) -> list[np.ndarray]:
        return [batch for window in self.windows(number) for batch in window]

    def windows(self, number: int) -> list[list[np.ndarray]]:
        """The batches of an epoch, window by window; without `window`, there is one."""
        if self.tokens is None:
            return list(self._batches(np.random.default_rng((self.seed, number))))
        found: list[list[np.ndarray]] = []
        left = self.per_epoch
        for part in range(1 + self.per_epoch):  # with a token limit, some draws give fewer batches than others
            for batches in self._batches(np.random.default_rng((self.seed, number, part))):
                found.append(batches[:left])
                left -= len(found[-1])
                if not left:
                    return found
        return found

    def _batches(self, random: np.random.Generator) -> Iterator[list[np.ndarray]]:
        """The batches of each window; rows that do not fill a batch are in the next one."""
        left: dict[int, np.ndarray] = {}
        for drawn in self._draw(random):
            batches = []
            for language in np.unique(self.languages_N) if self.monolingual else [0]:
                rows = drawn[self.languages_N[drawn] == language] if self.monolingual else drawn
                if self.window is not None:
                    rows = np.concatenate([left.get(language, rows[:0]), rows])
                    ragged = len(rows) % self.batch_size
                    rows, left[language] = rows[: len(rows) - ragged], rows[len(rows) - ragged :]
                batches += self._buckets(rows, random)
            yield [batches[index] for index in random.permutation(len(batches))]

    def _draw(self, random: np.random.Generator) -> Iterator[np.ndarray]:
        """Rows in random order, window by window, with corpora and languages in their sampled share.

        A row is repeated only after all others of its corpus and language have occurred as often.
        """
        size = len(self.languages_N)
        if self.window is not None:
            yield from self._draw_windows(self.window, random)
            return
        if self._has_all_rows_once:
            rows_N: np.ndarray = np.arange(size, dtype=_smallest(size))
        else:
            drawn = []
            for group, want in self._groups():
                repeats = [random.permutation(group) for _ in range(-(-want // len(group)))]
                drawn.append(np.concatenate([group[:0], *repeats])[:want])
            rows_N = np.concatenate(drawn)
        random.shuffle(rows_N)
        yield rows_N

    def _groups(self) -> Iterator[tuple[np.ndarray, int]]:
        """The rows of each corpus and language, ascending, and how many of them an epoch has."""
        size = len(self.languages_N)
        sources_N = np.zeros(size, np.int8) if self.sources_N is None else self.sources_N
        numbers, rows = np.unique(sources_N, return_counts=True)
        weights = rows if self.weights is None else np.asarray(self.weights, float)[numbers]
        for number, share in zip(numbers, weights / weights.sum(), strict=True):
            own: np.ndarray = np.flatnonzero(sources_N == number).astype(_smallest(size))
            languages, counts = np.unique(self.languages_N[own], return_counts=True)
            wanted = np.round(size * share * language_shares(counts, self.temperature)).astype(int)
            for language, want in zip(languages, wanted.tolist(), strict=True):
                yield own[self.languages_N[own] == language], want

    def _draw_windows(self, window: int, random: np.random.Generator) -> Iterator[np.ndarray]:
        """The rows of each window.

        Blocks at the same place of every group come in the same window where groups are drawn once: captions of one
        picture, and translations of one text, are often there.
        """
        groups = list(self._groups())
        count = max(1, -(-sum(want for _, want in groups) // window))
        order = random.permutation(BLOCKS * count)
        streams = [_in_blocks(group, want, order, count, random) for group, want in groups]
        for number in range(count):
            yield random.permutation(np.concatenate([rows[ends[number] : ends[number + 1]] for rows, ends in streams]))

    def _buckets(self, rows: np.ndarray, random: np.random.Generator) -> list[np.ndarray]:
        batches = []
        size = WINDOW * (self.batch_size if self.tokens is None else 1 + self.tokens // int(self.lengths_N.mean()))
        for start in range(0, len(rows), size):
            window = rows[start : start + size]
            ragged = len(window) % self.batch_size  # left out before sorting, so that any row may be
            window = window[: len(window) - ragged]
            window = window[np.argsort(self.lengths_N[window], kind="stable")]
            if self.tokens is not None:
                batches += self._by_tokens(window, self.tokens)
            elif len(window):
                batches += np.split(window, len(window) // self.batch_size)
        return batches

    def _by_tokens(self, rows: np.ndarray, budget: int) -> list[np.ndarray]:
        """Cut rows, sorted by length, into batches of at most `budget` tokens, but at least `batch_size` rows."""
        cuts, start = [], 0
        for stop in range(self.batch_size, len(rows), self.batch_size):
            longest = self.lengths_N[rows[min(stop + self.batch_size, len(rows)) - 1]]
            if (stop + self.batch_size - start) * longest > budget:
                cuts.append(stop)
                start = stop
        return [part for part in np.split(rows, cuts) if len(part)]


def _in_blocks(
    rows: np.ndarray, want: int, order: np.ndarray, windows: int, random: np.random.Generator
) -> tuple[np.ndarray, list[int]]:
    """So many of some rows, block by block, and where the share of each window starts and ends, windows + 1 numbers.

    Args:
        order: of the blocks; rows that are wanted more than once come in another one next.
    """
    blocks = np.array_split(rows.astype(np.int32 if rows[-1] < 2**31 else np.int64), len(order))
    ends = [want * number // windows for number in range(windows + 1)]
    if want == len(rows):  # blocks are not cut
        sizes = np.cumsum([0, *(len(blocks[block]) for block in order)])
        ends = sizes[:: len(order) // windows].tolist()
    drawn = [blocks[block] for block in order]
    for _ in range(max(0, -(-want // len(rows)) - 1)):
        drawn += [blocks[block] for block in random.permutation(len(order))]
    return np.concatenate(drawn)[:want], ends


def language_shares(counts: np.ndarray, temperature: float) -> np.ndarray:
    """Probability of each language, ~ counts^(1/temperature) (Arivazhagan et al., arXiv 1907.05019, section 4)."""
    shares = (counts / counts.sum()) ** (1 / temperature)
    return np.asarray(shares / shares.sum())


def pad(tokens: Sequence[np.ndarray], padding: int = PAD) -> tuple[Tensor, Tensor]:
    """Ids (B, T), padded on the right, and mask (B, T), both int64."""
    lengths = [len(ids) for ids in tokens]
    ids_BT = np.full((len(tokens), max(lengths)), padding, dtype=np.int64)
    for row, ids in enumerate(tokens):
        ids_BT[row, : len(ids)] = ids
    mask_BT = np.arange(ids_BT.shape[1])[None, :] < np.asarray(lengths)[:, None]
    return torch.from_numpy(ids_BT), torch.from_numpy(mask_BT.astype(np.int64))

"""The training rows of a triangle's stage: columns that are made once, kept in files and mapped by every process.

Shapes: N rows, B rows of a block.
"""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from mclip_kit.data.content_keys import hash_texts, hash_tokens, normalize_spaces
from mclip_kit.data.row_files import COLUMNS, ColumnWriter, Ragged, RaggedTexts, open_columns
from mclip_kit.data.sequences import Subset
from mclip_kit.progress import SOON, tqdm

MISSING = -1


@dataclass(frozen=True)
class TriangleRows:
    """N rows for a triangle stage: student text, and teacher text or image or both.

    A row without an image or without teacher text takes no part in the edges to it.

    Attributes:
        languages: codes; `languages_N` numbers them.
        tokens: the student's ids of each row, `<s> ... </s>`; `token_keys_N2` are their keys, see `data.content_keys`.
        lengths_N: number of tokens of each row.
        teacher_texts: the teacher's text of each row, empty if the row has none; `teacher_keys_N2` are their keys.
        has_teacher_N: whether a row has a teacher text.
        images_N: row in the prepared folder's picture table, or MISSING.
        groups_N: rows with the same number count as positives for each other.
        sources_N: the corpus of each row.
        folder: where the columns are; None: they are some rows of others.
    """

    languages: list[str]
    languages_N: np.ndarray
    tokens: Sequence[np.ndarray]
    lengths_N: np.ndarray
    teacher_texts: Sequence[str]
    has_teacher_N: np.ndarray
    images_N: np.ndarray
    groups_N: np.ndarray
    sources_N: np.ndarray
    token_keys_N2: np.ndarray
    teacher_keys_N2: np.ndarray
    folder: Path | None = None

    def __len__(self) -> int:
        return len(self.languages_N)

    def select(self, rows: np.ndarray) -> "TriangleRows":
        """The given rows, in the given order."""
        return TriangleRows(
            languages=self.languages,
            languages_N=self.languages_N[rows],
            tokens=Subset(self.tokens, rows),
            lengths_N=self.lengths_N[rows],
            teacher_texts=Subset(self.teacher_texts, rows),
            has_teacher_N=self.has_teacher_N[rows],
            images_N=self.images_N[rows],
            groups_N=self.groups_N[rows],
            sources_N=self.sources_N[rows],
            token_keys_N2=self.token_keys_N2[rows],
            teacher_keys_N2=self.teacher_keys_N2[rows],
        )


@dataclass(frozen=True)
class RowBlock:
    """Some rows while they are made; columns as of `TriangleRows`.

    Attributes:
        groups_B: None: rows with the same teacher text count as positives for each other.
        images_B: None: no row has an image.
    """

    languages_B: np.ndarray
    tokens: list[np.ndarray]
    teacher_texts: list[str]
    source: int = 0
    images_B: np.ndarray | None = None
    groups_B: np.ndarray | None = None


@dataclass(frozen=True)
class RowStream:
    """Rows that are made a block at a time.

    Attributes:
        languages: codes.
        count: at most so many rows come.
        blocks: the rows.
    """

    languages: list[str]
    count: int
    blocks: Iterable[RowBlock]


def write_rows(folder: Path, stream: RowStream) -> None:
    """Write rows into a folder that is empty, with a progress bar if it takes long."""
    ends = {"tokens": 0, "teacher": 0}
    bar = tqdm(total=stream.count, desc="rows: read", unit=" rows", unit_scale=True, leave=False, delay=SOON)
    with bar, ColumnWriter(folder, {"languages": stream.languages}) as writer:
        for block in chain([RowBlock(np.empty(0, np.int16), [], [])], stream.blocks):  # the first has all types
            for name, values in _columns(block, ends).items():
                writer.add(name, values)
            bar.update(len(block.tokens))


def _columns(block: RowBlock, ends: dict[str, int]) -> dict[str, np.ndarray]:
    B = len(block.tokens)
    lengths_B = np.fromiter(map(len, block.tokens), np.int32, B)
    encoded = [text.encode() for text in block.teacher_texts]
    sizes_B = np.fromiter(map(len, encoded), np.int64, B)
    keys_B2 = hash_texts(map(normalize_spaces, block.teacher_texts))
    found: dict[str, np.ndarray] = {
        "language": block.languages_B.astype(np.int16),
        "length": lengths_B,
        "has_teacher": sizes_B > 0,
        "image": (np.full(B, MISSING) if block.images_B is None else block.images_B).astype(np.int32),
        "group": keys_B2[:, 0].view(np.int64) if block.groups_B is None else block.groups_B.astype(np.int64),
        "source": np.full(B, block.source, np.int16),
        "tokens": np.concatenate([np.empty(0, np.int32), *block.tokens]).astype(np.int32, copy=False),
        "tokens_end": ends["tokens"] + np.cumsum(lengths_B, dtype=np.int64),
        "teacher": np.frombuffer(b"".join(encoded), np.uint8),
        "teacher_end": ends["teacher"] + np.cumsum(sizes_B, dtype=np.int64),
        "token_key": hash_tokens(block.tokens),
        "teacher_key": keys_B2,
    }
    ends["tokens"] += int(lengths_B.sum())
    ends["teacher"] += int(sizes_B.sum())
    return found


def open_rows(folder: Path) -> TriangleRows:
    """Map rows that were written.

    Raises:
        DataError: a file is damaged.
    """
    facts, columns = open_columns(folder)
    with suppress(OSError):  # the folder may be read-only
        os.utime(folder / COLUMNS)  # the time of last use
    return TriangleRows(
        languages=list(facts["languages"]),
        languages_N=columns["language"],
        tokens=Ragged(columns["tokens"], columns["tokens_end"]),
        lengths_N=columns["length"],
        teacher_texts=RaggedTexts(columns["teacher"], columns["teacher_end"]),
        has_teacher_N=columns["has_teacher"],
        images_N=columns["image"],
        groups_N=columns["group"],
        sources_N=columns["source"],
        token_keys_N2=columns["token_key"],
        teacher_keys_N2=columns["teacher_key"],
        folder=folder,
    )

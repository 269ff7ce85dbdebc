"""The account of a source: how many rows it has, and what of it is not taken, with the reason and an example."""

from collections import Counter
from typing import Any


class Account:
    """Counts what becomes of a source: rows read = rows kept + rows left out.

    A row is what a reader meets one after the other: a line of a table, a picture of a folder, a sample of a shard. A
    reader calls `leave_out` for each row that it does not yield, and `ignore` for what is no row: a column, a file, a
    part of a cell. The writer counts the rows that the reader yields.

    Attributes:
        kept: rows of which a picture, a caption or a sentence pair is kept.
        left_out: reason -> rows of which nothing is kept.
        ignored: what -> number of columns, files or values that are not taken although their rows are.
        examples: reason or what -> the first place, such as a file and a row.
        notes: how the reader understood the source, a sentence each.
        empty: language -> empty texts of rows that are kept, which a reader counts as ignored in the end, and
        first_empty: language -> where the first one is.

    Example:
        >>> account = Account()
        >>> account.kept += 2
        >>> account.leave_out("rows without a caption", "captions.csv row 3")
        >>> account.read, account.as_json()["left_out"]
        (3, {'rows without a caption': 1})
    """

    def __init__(self) -> None:
        self.kept = 0
        self.left_out: Counter[str] = Counter()
        self.ignored: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.notes: list[str] = []
        self.empty: Counter[str] = Counter()
        self.first_empty: dict[str, str] = {}

    @property
    def read(self) -> int:
        """Rows that were met."""
        return self.kept + self.left_out.total()

    def leave_out(self, reason: str, where: object, count: int = 1) -> None:
        """Count rows of which nothing is kept; `where` is the example of the first ones."""
        self._count(self.left_out, reason, where, count)

    def ignore(self, what: str, where: object, count: int = 1) -> None:
        """Count what is no row and is not taken, such as `column` or `files beside the pictures`."""
        self._count(self.ignored, what, where, count)

    def note(self, sentence: str) -> None:
        """Keep how the source was understood, such as `no captions; 2 classes: cat, dog`."""
        self.notes.append(sentence)

    def _count(self, counts: Counter[str], why: str, where: object, count: int) -> None:
        if count:
            counts[why] += count
            self.examples.setdefault(why, str(where))

    def add_empty(self, language: str, where: object, count: int = 1) -> None:
        """Count empty texts of rows that are kept; `where` is the example of the first ones."""
        self.empty[language] += count
        self.first_empty.setdefault(language, str(where))

    def replay(self, kind: str, why: str, where: str, count: int) -> None:
        """Count what a `RecordedAccount` recorded."""
        if kind == "note":
            self.note(why)
        elif kind == "empty":
            self.add_empty(why, where, count)
        else:
            (self.leave_out if kind == "left_out" else self.ignore)(why, where, count)

    def as_json(self) -> dict[str, Any]:
        """The account as a manifest keeps it, under `rows`."""
        return {
            "read": self.read,
            "kept": self.kept,
            "left_out": dict(self.left_out),
            "ignored": dict(self.ignored),
            "examples": self.examples,
        } | ({"notes": self.notes} if self.notes else {})

    @staticmethod
    def lines(rows: dict[str, Any] | None) -> list[str]:
        """An account of a manifest in words, a line for each reason; older manifests have none."""
        if rows is None:
            return []
        examples = rows["examples"]
        return rows.get("notes", []) + [
            f"{title}: {count:,} {why}, such as {examples[why]}"
            for title, counts in (("left out", rows["left_out"]), ("not read", rows["ignored"]))
            for why, count in counts.items()
        ]


class RecordedAccount(Account):
    """Records what is counted, so that it is replayed elsewhere, between the same rows.

    Attributes:
        rows: number of rows since the last `take`, which the caller counts.

    Example:
        >>> recorded, account = RecordedAccount(), Account()
        >>> recorded.leave_out("rows without a text", "line 3")
        >>> for rows_before, *event in recorded.take():
        ...     account.replay(*event)
        >>> account.as_json()["left_out"]
        {'rows without a text': 1}
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0
        self._events: list[list[Any]] = []
        self._places: dict[tuple[str, str], list[Any]] = {}

    def take(self) -> list[list[Any]]:
        """What was recorded since the last call: [rows before, kind, why, where, count] for each reason."""
        events, self._events, self._places, self.rows = self._events, [], {}, 0
        return events

    def note(self, sentence: str) -> None:
        """See `Account.note`."""
        self._events.append([self.rows, "note", sentence, "", 1])

    def add_empty(self, language: str, where: object, count: int = 1) -> None:
        """See `Account.add_empty`."""
        self._record("empty", language, where, count)

    def count_text(self, why: str, count: int) -> None:
        """Record texts that were changed or left out; they are no rows and have no example."""
        self._record("texts", why, "", count)

    def _count(self, counts: Counter[str], why: str, where: object, count: int) -> None:
        self._record("left_out" if counts is self.left_out else "ignored", why, where, count)

    def _record(self, kind: str, why: str, where: object, count: int) -> None:
        if count and (kind, why) in self._places:
            self._places[kind, why][4] += count
        elif count:
            self._places[kind, why] = [self.rows, kind, why, str(where), count]
            self._events.append(self._places[kind, why])

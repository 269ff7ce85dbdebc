"""What was found in a folder."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from mclip_kit.data.languages import TEACHER_LANGUAGE

ODD = "its path has control characters or is not UTF-8; rename it"


@dataclass(frozen=True)
class Data:
    """Rows to train on.

    Attributes:
        what: for people.
        kind: `captions` or `bitext`.
        languages: codes, the teacher's first.
        folder: where they are prepared, or will be.
        words: words after `mclip-kit prepare`; none: they are prepared.
        rows: about how many there are; 0: unknown.
    """

    what: str
    kind: str
    languages: list[str]
    folder: str
    words: tuple[str, ...] = ()
    rows: int = 0


@dataclass
class Found:
    """What a folder has.

    Attributes:
        data: rows to train on, prepared ones first.
        clips: values of a recipe's `teacher.model`.
        encoders: values of a recipe's `encoder`.
        models: model folders, whose parts are taken if there is nothing else.
        others: what looked like one of these and is not taken, with the reason.
    """

    data: list[Data] = field(default_factory=list)
    clips: list[str] = field(default_factory=list)
    encoders: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def first(self, kind: str) -> Data | None:
        """The first rows of a kind."""
        return next((data for data in self.data if data.kind == kind), None)


def teacher_first(languages: Iterable[str]) -> list[str]:
    """Codes, each once, sorted; the teacher's is the first."""
    return sorted(set(languages), key=lambda code: (code != TEACHER_LANGUAGE, code))

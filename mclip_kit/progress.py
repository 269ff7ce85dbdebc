"""Progress bars: tqdm's on a terminal; in a file or a pipe one plain line every half minute, and none of quick work."""

import io
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm as tqdm_bar

_quiet = _downloads = False
_lines: list[str] = []
_bars: "list[tqdm] | None" = None  # with `relay`: those of this process, which are not drawn
EVERY = 30.0  # seconds between two lines
SOON = 2.0  # seconds after which work that is usually shorter gets a bar
LINE = "{desc}: {n_fmt} of {total_fmt} {unit}s, {elapsed} so far, {remaining} left{postfix}"


def set_quiet(quiet: bool, downloads: bool = False) -> None:
    """Say whether this process draws no bars and prints neither notes nor what else is no result and no warning.

    Args:
        downloads: whether the hub's own bars of downloads are drawn; see `models.hub.limit_bars`.
    """
    global _quiet, _downloads
    _quiet, _downloads = quiet, downloads and not quiet


def shows_downloads() -> bool:
    """Whether the hub's bars of downloads are drawn."""
    return _downloads


def note(line: str) -> None:
    """Print a line that is neither a result nor a warning, above the bars; nothing if the process is quiet."""
    if not _quiet:
        tqdm.write(line)


Bar = tuple[float, float | None, str]
"""What a bar has counted, its total if it is known, and its unit."""
Report = tuple[list[str], dict[str, Bar]]
"""Lines, and bars by their description."""


def relay() -> Callable[[], Report]:
    """From now on this process prints no lines and no bars; another one asks for them and shows them.

    Returns:
        A function that gives the lines since it was called before, and the bars that are open.
    """
    global _bars
    bars: list[tqdm] = []
    _bars, lines = bars, _lines

    def report() -> Report:
        bars[:] = [bar for bar in bars if not bar.disable]  # as one is after its end
        return [lines.pop(0) for _ in range(len(lines))], {bar.desc: (bar.n, bar.total, bar.unit) for bar in bars}

    return report


def is_quiet() -> bool:
    """Whether bars and notes are left out.

    >>> is_quiet()
    False
    """
    return _quiet


class tqdm(tqdm_bar):
    """tqdm's bar, which prints lines where its output is no terminal.

    >>> for row in tqdm(range(3), "rows"):
    ...     pass
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._printed = time.time()
        super().__init__(*arguments, **(options | ({"disable": True} if _quiet else {})))
        if _bars is not None and not self.disable:
            _bars.append(self)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Draw the bar, or print a line if it is time."""
        if _bars is not None:
            return True
        if self.fp.isatty():
            return super().display(msg, pos)
        if msg is None and time.time() - self._printed >= EVERY:
            self._printed = time.time()
            print(self._line(), file=self.fp, flush=True)
        return True

    @classmethod
    def write(cls, s: str, file: Any = None, end: str = "\n", nolock: bool = False) -> None:
        """Print a line above the bars, at once: in a log it is before what comes after it on standard error."""
        if _bars is not None:
            _lines.append(s)
            return
        super().write(s, file, end, nolock)
        (file or sys.stdout).flush()

    def _line(self) -> str:
        facts = {**self.format_dict, "bar_format": LINE, "ncols": None}
        facts["unit"] = facts["unit"].strip().removesuffix("s")
        return " ".join(self.format_meter(**facts).split())

    def clear(self, nolock: bool = False) -> None:
        """Make room for a line that others print."""
        if self.fp.isatty():
            super().clear(nolock)

    def close(self) -> None:
        """End the bar; a file gets no end of a line that it has no start of."""
        if not hasattr(self, "start_t"):  # set last: the bar is disabled, or a signal came while it was made
            return
        if not self.disable and not self.fp.isatty():
            self.fp: Any = io.StringIO()
        super().close()


# tqdm's own lock is one of all forked processes: a process that is killed while it holds it would stop the others
tqdm.set_lock(threading.RLock())

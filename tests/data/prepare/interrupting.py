"""Prepares a corpus again and again, and each time stops the process at another moment at which it changes a file.

python -m tests.data.prepare.interrupting SIGNAL EVERY FOLDER ARGUMENT...

The preparation of FOLDER/N/data is stopped at the N-th moment and then run again; FOLDER/data is prepared without a
stop. Each runs in a new process, forked from this one, which has imported everything. A line of JSON records how each
ended.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from mclip_kit.cli import cli
from mclip_kit.data.corpora import lines  # noqa: F401  (imported once, not in every process)
from mclip_kit.data.prepare import adhoc, binarize, prepare, summary  # noqa: F401

MOMENTS = {"os.rename", "os.remove", "os.truncate"}
binarize.BLOCK = 8


def run(words: list[str], folder: Path, stop: tuple[str, int] | None) -> tuple[int, str, str]:
    """Exit status (negative: the signal), where it was stopped, and what it printed."""
    printed, where = folder / "printed", folder / "where"
    pid = os.fork()
    if not pid:
        output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.open(where, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        if stop:
            _stop_at(*stop, folder, where)
        cli(["prepare", *words, "--out", str(folder / "data"), "--workers", "1"])
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), where.read_text(), printed.read_text()


def _stop_at(name: str, moment: int, folder: Path, where: Path) -> None:
    """Send this process a signal at the moment with this number."""
    count, me = 0, os.getpid()

    def hook(event: str, given: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in MOMENTS or os.getpid() != me or ".data.part" not in str(given[0]):
            return
        if event == "os.remove" and not os.path.exists(given[0]):
            return
        count += 1
        if count == moment:
            where.write_text(f"{event} {Path(given[0]).relative_to(folder)}")
            os.kill(me, signal.Signals[name])

    sys.addaudithook(hook)


def main(name: str, every: str, folder: str, *words: str) -> None:
    moment = 1
    run(list(words), Path(folder), None)
    while True:
        place = Path(folder, str(moment))
        place.mkdir()
        stopped, where, printed = run(list(words), place, (name, moment))
        again, _, printed_again = run(list(words), place, None)
        print(json.dumps([moment, where, stopped, printed, again, printed_again]), flush=True)
        if not where:
            return
        moment += int(every)


if __name__ == "__main__":
    main(*sys.argv[1:])

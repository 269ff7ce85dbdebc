"""Damaged inputs of every kind: each must end in success or in one line that says what is wrong.

    python benchmarks/torture_inputs.py [--inputs 10000] [--seed 0] [--only KIND] [--smoke]

Writes small real inputs of every kind that the product reads (torture_kinds.py), damages a copy of one (mutations.py)
and lets the product's own function read it, again and again, in forked processes that may take 2 GiB more than they
have and 10 seconds of a processor an input. Of every 20 inputs one goes through the command line, if there is a quick
command.

An input ends well if it is read, or refused by one of the product's errors. It ends badly by another class of error, a
crash, a hang, too much memory, or where there are checksums (model folder, cache, compressed files) if something else
comes out of it without a word. The last line has the share that ends well.
"""

import argparse
import contextlib
import gc
import logging
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner
from mutations import mutate
from side_by_side import last_line
from torture_kinds import Kind, digest, kinds

from mclip_kit.cli import cli
from mclip_kit.errors import MclipError

GOAL = 1.0
SECONDS, MEMORY = 10.0, 2 << 30
PROCESSES = 2
COMMANDS = 20  # one of so many inputs goes through the command line
CHANGED = ("flip", "numbers", "zeros")  # bytes that are others
GOOD = ("read", "refused")
FORK = multiprocessing.get_context("fork")

Outcome = tuple[str, str]
"""What became of an input, and more words."""


class Hang(BaseException):
    """The time is over; no handler of the product catches it."""


def _late(*_: Any) -> None:
    raise Hang


def target(place: Path, kind: Kind, draw: random.Random) -> Path:
    """The file of a copy that is damaged."""
    if place.is_file():
        return place
    return draw.choice(sorted({path for pattern in kind.files for path in place.glob(pattern) if path.is_file()}))


def one(
    number: int, seed: int, found: dict[str, Kind], whole: dict[str, str], folder: Path
) -> tuple[str, str, Outcome]:
    """Damage an input and read it; its kind, the damage, and what became of it."""
    draw = random.Random(f"{seed} {number}")
    name = sorted(found)[number % len(found)]
    kind = found[name]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    place = folder / kind.place.name
    (shutil.copytree if kind.place.is_dir() else shutil.copy)(kind.place, place)
    damaged = target(place, kind, draw)
    what = f"{damaged.relative_to(folder)}: {mutate(damaged, draw)}"
    raw = what.count(": ") == 1 and what.rpartition(": ")[2] in CHANGED
    words = kind.command(place) if kind.command and draw.randrange(COMMANDS) == 0 else None
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        return (
            name,
            what,
            _command(words) if words else _read(kind, place, whole.get(name) if raw or kind.exact != "raw" else None),
        )
    except Hang:
        return name, what, ("hang", f"more than {SECONDS:g} s")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _read(kind: Kind, place: Path, whole: str | None) -> Outcome:
    try:
        value = kind.read(place)
    except MclipError as error:
        text = str(error)
        return ("refused", text) if text.isprintable() else ("unprintable", repr(text))
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in last if "mclip_kit" in frame.filename]
        where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
        return type(error).__name__, f"{where}: {str(error)[:300]}"
    if whole is not None and digest(value) != whole:
        return "silent", "something else was read"
    return "read", ""


def _command(words: list[str]) -> Outcome:
    done = CliRunner().invoke(cli, words)
    line = done.stderr.strip().splitlines()[-1:] or [""]
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        return f"command {type(done.exception).__name__}", f"{words}: {done.exception!r}"[:500]
    if done.exit_code == 0:
        return "read", ""
    if done.exit_code == 2 and line[0].startswith("Error: "):
        return "refused", line[0]
    return f"command exit {done.exit_code}", f"{words}: {done.output[-500:]}"


def work(
    numbers: list[int], seed: int, found: dict[str, Kind], whole: dict[str, str], folder: Path, to: Connection
) -> None:
    """A forked process: its inputs, one by one; each is told before it begins and when it has ended."""
    signal.signal(signal.SIGPROF, _late)
    torch.set_num_threads(1)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    with open(os.devnull, "w") as silent, contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        os.dup2(silent.fileno(), 2)  # of libraries in C
        for number in numbers:
            to.send((number, None))
            to.send((number, one(number, seed, found, whole, folder / str(os.getpid()))))
    shutil.rmtree(folder / str(os.getpid()), ignore_errors=True)


def torture(
    count: int, seed: int, found: dict[str, Kind], whole: dict[str, str], folder: Path
) -> list[tuple[int, str, str, Outcome]]:
    """All inputs: number, kind, damage, outcome."""
    left = [list(range(start, count, PROCESSES)) for start in range(PROCESSES)]
    running: dict[Connection, tuple[Any, list[int], float]] = {}
    ends = []

    def start(numbers: list[int]) -> None:
        if numbers:
            here, there = FORK.Pipe(duplex=False)
            process = FORK.Process(target=work, args=(numbers, seed, found, whole, folder, there))
            process.start()
            there.close()
            running[here] = (process, numbers, time.monotonic())

    for numbers in left:
        start(numbers)
    while running:
        ready = wait(list(running), timeout=1)
        for here in list(running):
            process, numbers, since = running[here]
            lost = time.monotonic() - since > 9 * SECONDS
            if here in ready and not lost:
                try:
                    number, outcome = here.recv()
                    if outcome is not None:
                        ends.append((number, *outcome))
                        numbers.remove(number)
                        if len(ends) % 500 == 0:
                            print(f"{len(ends)} of {count}", flush=True)
                    running[here] = (process, numbers, time.monotonic())
                    continue
                except EOFError:
                    pass
            elif not lost:
                continue
            process.kill()
            process.join()
            del running[here]
            if numbers:  # the first one ended the process
                name = sorted(found)[numbers[0] % len(found)]
                how = "hang" if lost else "crash"
                ends.append((numbers[0], name, "", (how, f"exit code {process.exitcode}")))
                start(numbers[1:])
    return ends


def main() -> None:
    """Torture, and print what became of the inputs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="Kinds with this in their name.")
    parser.add_argument("--show", type=int, metavar="NUMBER", help="Only this input, with its traceback.")
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        found = {name: kind for name, kind in kinds(base / "base").items() if (asked.only or "") in name}
        whole = {}
        for name, kind in found.items():  # undamaged, every input is read
            place = base / "whole" / kind.place.name
            shutil.rmtree(base / "whole", ignore_errors=True)
            (shutil.copytree if kind.place.is_dir() else shutil.copy)(kind.place, (place.parent.mkdir(), place)[1])
            value = kind.read(place)
            if kind.exact:
                whole[name] = digest(value)
        gc.freeze()
        if asked.show is not None:
            print(one(asked.show, asked.seed, found, whole, base / "show"))
            return
        count = 2 * len(found) if asked.smoke else asked.inputs
        started = time.perf_counter()
        ends = torture(count, asked.seed, found, whole, base / "work")
    table: Counter[tuple[str, str]] = Counter((name, outcome[0]) for _, name, _, outcome in ends)
    for name in sorted(found):
        print(f"{name:16}", ", ".join(f"{n} {what}" for (kind, what), n in sorted(table.items()) if kind == name))
    bad = [end for end in sorted(ends) if end[3][0] not in GOOD]
    for number, name, what, outcome in bad:
        print(f"{number} {name}: {what[:200]}: {outcome[0]}: {outcome[1]}")
    taken = time.perf_counter() - started
    sums = Counter(outcome[0] for *_, outcome in ends)
    print(f"{len(ends)} inputs in {taken:.0f} s: " + ", ".join(f"{n} {what}" for what, n in sums.most_common()))
    last_line("torture_inputs", 1 - len(bad) / len(ends) if len(bad) * 100 > len(ends) else int(not bad) or 0.99, GOAL)
    sys.stdout.flush()


if __name__ == "__main__":
    main()

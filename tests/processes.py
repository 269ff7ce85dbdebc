"""Functions and commands in processes of their own, each ready in a moment.

Importing the package and its libraries takes seconds. One server a test session imports them once, and each process
is forked from it. What a process prints is kept; its exit status is that of `subprocess`. A process is a real one: it
can be killed, interrupted, or started in groups of ranks that meet as under torchrun.

    done = run(command, "train", "quickstart")     # mclip-kit train quickstart
    child = start(function, argument); child.send_signal(signal.SIGINT); child.wait()

Where the start of Python, of torchrun or of an import is what a test checks, it uses `subprocess`.
"""

import atexit
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore

ROOT = Path(__file__).parents[1]
PATIENCE = 300.0  # seconds; a process that takes longer is killed
FORKED = multiprocessing.get_context("forkserver")
CHILDREN: set["Child"] = set()


def start_server() -> None:
    """Start the server, unless it runs."""
    kept = dict(os.environ)
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH")]))
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    multiprocessing.forkserver.set_forkserver_preload(["tests.preloaded"])
    multiprocessing.forkserver.ensure_running()
    os.environ.clear()
    os.environ.update(kept)


class Child:
    """A process, or the ranks of one job, that runs function(*arguments).

    Attributes:
        ranks: the processes.
        returncode: None while it runs; then the exit status, or minus the signal's number; of ranks the first that is
            not 0.
    """

    def __init__(self, function: Callable[..., Any], arguments: Sequence[Any], ranks: int, **how: Any) -> None:
        start_server()
        self._folder = tempfile.TemporaryDirectory()
        names = ("stdout", "stdout" if how.pop("merged", False) else "stderr")
        self._outputs = [Path(self._folder.name, name) for name in names]
        meeting: dict[str, str] = {}
        if ranks > 1:  # as torchrun does: the launcher keeps the store, on a port that is free
            self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._store.port), "WORLD_SIZE": str(ranks)}
            meeting |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        self.ranks = []
        for rank in range(ranks):
            places = meeting and {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks)}
            given = (function, arguments, self._outputs, {**_environment(), **meeting, **places}, os.getcwd())
            self.ranks.append(FORKED.Process(target=_child, args=given, kwargs=how))
            self.ranks[-1].start()
        CHILDREN.add(self)

    @property
    def pid(self) -> int:
        """Of the first rank."""
        assert self.ranks[0].pid is not None
        return self.ranks[0].pid

    @property
    def returncode(self) -> int | None:
        codes = [rank.exitcode for rank in self.ranks]
        wrong = [code for code in codes if code]
        return wrong[0] if wrong else None if None in codes else 0

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return self._outputs[0].read_text(encoding="utf-8") if self._outputs[0].exists() else ""

    @property
    def stderr(self) -> str:
        return self._outputs[1].read_text(encoding="utf-8") if self._outputs[1].exists() else ""

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        for rank in self.ranks:
            if rank.exitcode is None and rank.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(rank.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float = PATIENCE) -> "Child":
        """Wait until it has ended; where one rank fails, the others are killed."""
        end = time.monotonic() + timeout
        while self.returncode is None:
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"no end within {timeout:g} s; it printed: {self.stdout}{self.stderr}")
            multiprocessing.connection.wait([r.sentinel for r in self.ranks if r.exitcode is None], timeout=1)
        self.kill()
        for rank in self.ranks:
            rank.join()
        CHILDREN.discard(self)
        return self


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _child(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    outputs: list[Path],
    environment: dict[str, str],
    folder: str,
    session: bool = False,
) -> None:
    """What a forked process does: it becomes what `subprocess` would have started, and calls the function."""
    for number, path in enumerate(outputs, 1):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    if session:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so their tests
    multiprocessing.set_start_method(None, force=True)  # its workers are its own children
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # what TMPDIR says now
    os.chdir(folder)
    torch.set_num_threads(1)
    function(*arguments)


@atexit.register
def _kill_all() -> None:
    for child in CHILDREN:
        child.kill()


def start(
    function: Callable[..., Any], *arguments: Any, ranks: int = 1, session: bool = False, merged: bool = False
) -> Child:
    """Call a function in a process; it goes on beside the test.

    Args:
        function: at the top of a module, for it is imported there.
        arguments: what it takes; picklable.
        ranks: so many processes, which meet as under torchrun.
        session: make it the leader of a process group, which a terminal's Ctrl-C reaches as a whole.
        merged: what it prints to stderr is in `stdout` too, in order.
    """
    return Child(function, arguments, ranks, session=session, merged=merged)


def run(function: Callable[..., Any], *arguments: Any, ranks: int = 1) -> Child:
    """Call a function in a process and wait for its end."""
    return start(function, *arguments, ranks=ranks).wait()


def command(*words: str) -> None:
    """`mclip-kit WORDS`, as the console script calls it."""
    from mclip_kit.cli import main

    sys.argv = ["mclip-kit", *words]
    main()


def script(code: str, *words: str) -> None:
    """`python -c CODE WORDS`, in which libraries are imported already."""
    sys.argv = ["-c", *words]
    exec(code, {"__name__": "__main__"})


def train(recipe: Path, out: Path, processes: int = 1, *options: str) -> str:
    """Run `mclip-kit train` in some processes; its standard output."""
    done = run(command, "train", str(recipe), "--out", str(out), *options, ranks=processes)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def torchrun(ranks: int, *words: str) -> subprocess.CompletedProcess[str]:
    """`mclip-kit WORDS` under the real torchrun, which takes seconds to start; on a port that is free."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    command = [*launch, "-m", "mclip_kit.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())

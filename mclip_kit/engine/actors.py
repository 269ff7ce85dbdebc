"""Ray's actors: those of one `Cluster.map`, the tasks that they are given, and what each of them does."""

import os
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from mclip_kit import __version__, urls
from mclip_kit.engine.base import Make
from mclip_kit.errors import DataError, MclipError, first_line
from mclip_kit.progress import Bar, Report, is_quiet, relay, set_quiet, tqdm

TRIES = 4  # of a task whose actor is killed, and of actors that do not start
LOOK = 1.0  # seconds between two looks at what actors say
LAST = 10.0  # seconds in which they may say something at the end
WAIT = 30.0  # seconds between two lines about a cluster without room
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # what nodes print about a killed process; `Task` says it in one line
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
}
SPEAKING = "speaking"  # the threads of an actor that answer while it works
PASSED_ON = ("HF_", "TRANSFORMERS_", "MCLIP_KIT_", "TOKENIZERS_", "TORCH_CPP_LOG_LEVEL", "AWS_", "GOOGLE_", "FSSPEC_")
"""Starts of the names of the driver's environment variables that its actors get."""


def check_installed() -> None:
    """DataError without Ray, which is not imported."""
    if find_spec("ray") is None:
        raise DataError("--engine ray needs Ray: pip install 'ray>=2.60'")


def import_ray() -> Any:
    """Ray, which reads the environment when it is imported first."""
    check_installed()
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    return import_module("ray")


@dataclass(eq=False)
class Slot:
    """An actor, and what it was given.

    Attributes:
        started: a reference that is ready when the actor runs.
        tasks: futures that may not be done yet.
        report: the future of what it says, if it was asked.
        bars: those that it had when it answered last.
        died: whether it was killed at a task.
    """

    actor: Any
    started: Any
    tasks: list[Any] = field(default_factory=list)
    report: Any = None
    bars: dict[str, Bar] = field(default_factory=dict)
    died: bool = False

    def load(self) -> int:
        """Number of tasks that are not done."""
        self.died = self.died or any(task.done() and task.exception() is not None for task in self.tasks)
        self.tasks = [task for task in self.tasks if not task.done()]
        return len(self.tasks)


class Actors:
    """The actors of one `map`. One that is killed is replaced, on another node if its node is gone.

    Args:
        count: how many there are at most; work starts when the cluster has room for one.
        room: most tasks that one has at a time.
        resources: of an actor, as Ray names them.
        make, given: see `Engine.map`.
    """

    def __init__(
        self, count: int, room: int, resources: Mapping[str, float], make: Make, given: tuple[Any, ...]
    ) -> None:
        self.ray, self._room = import_ray(), room
        environment = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        environment[urls.ROOT] = str(urls.root())  # paths of copies are the same everywhere
        held = [self.ray.put((make, given))]  # in a list: Ray would copy it to each actor before it starts
        self._given = (__version__, os.getcwd(), environment, is_quiet(), held)
        options = {"scheduling_strategy": "SPREAD", "concurrency_groups": {SPEAKING: 1}}
        self._class = self.ray.remote(**options, **resources)(Actor)
        self._bars: dict[str, tqdm] = {}
        self._failed = 0
        self._slots: list[Slot] = []
        for _ in range(count):
            self._add()

    def _add(self) -> None:
        actor = self._class.remote(*self._given)
        self._slots.append(Slot(actor, actor.start.remote()))

    def free(self) -> Slot:
        """The actor that has least to do; waits until one runs that has room for another task.

        Raises:
            DataError: the node of one is not as this process needs it, or actors do not start.
        """
        say = time.monotonic() + WAIT
        while True:
            running = [slot for slot in self._started() if self._runs(slot)]
            least = min(running, key=Slot.load, default=None)
            if least and least.load() < self._room:
                return least
            self.show()
            if running:
                wait([task for slot in running for task in slot.tasks], LOOK, FIRST_COMPLETED)
                continue
            self.ray.wait([slot.started for slot in self._slots], timeout=LOOK)
            if time.monotonic() > say:
                say += WAIT
                tqdm.write("the Ray cluster has no free node for this work yet; waiting")

    def _started(self) -> list[Slot]:
        starting = {slot.started: slot for slot in self._slots}
        ready, _ = self.ray.wait(list(starting), num_returns=len(starting), timeout=0)
        return [starting[started] for started in ready]

    def _runs(self, slot: Slot) -> bool:
        """Whether an actor that has started still runs; one that was killed is replaced."""
        if slot.load() == 0 and slot.died:
            self.replace(slot)
            return False
        try:
            wrong = self.ray.get(slot.started)
        except self.ray.exceptions.RayActorError as error:
            self._failed += 1
            if self._failed == TRIES:
                raise DataError(f"processes on the Ray cluster do not start: {first_line(error)}") from None
            self.replace(slot)
            return False
        if wrong is not None:
            raise wrong
        return True

    def replace(self, slot: Slot) -> None:
        """Start another actor for one that was killed."""
        if slot in self._slots:
            tqdm.write("a process on the Ray cluster was killed; another one does its work again")
            self._slots.remove(slot)
            self._add()

    def show(self, patience: float = 0) -> None:
        """Print what actors have said since the last call, and draw the sums of their bars.

        Args:
            patience: seconds in which they may answer; who does not is asked by the next call.
        """
        end, running = time.monotonic() + patience, self._started()
        for slot in running:
            slot.report = slot.report or slot.actor.report.options(concurrency_group=SPEAKING).remote().future()
        for slot in running:
            with suppress(TimeoutError, self.ray.exceptions.RayError):
                lines, slot.bars = slot.report.result(max(0, end - time.monotonic()))
                slot.report = None
                for line in lines:
                    tqdm.write(line)
        self._draw([slot.bars for slot in self._slots])

    def show_last(self) -> None:
        """Print all that actors have said: the second answer is from now, the first may be to an earlier question."""
        for _ in range(2):
            self.show(LAST)

    def _draw(self, bars: list[dict[str, Bar]]) -> None:
        for name in {name for own in bars for name in own}:
            counts, totals, units = zip(*(own[name] for own in bars if name in own), strict=True)
            if name not in self._bars:
                self._bars[name] = tqdm(desc=name, unit=units[0], leave=False, dynamic_ncols=True)
            self._bars[name].n, self._bars[name].total = sum(counts), totals[0]
            self._bars[name].refresh()
        for name in [name for name in self._bars if not any(name in own for own in bars)]:
            self._bars.pop(name).close()

    def kill(self) -> None:
        """End all actors."""
        for slot in self._slots:
            self.ray.kill(slot.actor)
        self._slots = []
        self._draw([])


class Task:
    """An item that an actor works on.

    Args:
        actors: one of them gets it at once.
        item: any value that can be pickled.
    """

    def __init__(self, actors: Actors, item: Any) -> None:
        self._actors, self._item = actors, item
        self._submit()

    def _submit(self) -> None:
        self._slot = self._actors.free()
        self._future = self._slot.actor.do.remote(self._item).future()
        self._slot.tasks.append(self._future)

    def result(self) -> tuple[Any, Exception | None]:
        """What the work returned, and what it raised.

        Raises:
            DataError: every actor that worked on it was killed.
        """
        killed = self._actors.ray.exceptions.RayActorError
        for tries in range(1, TRIES + 1):
            try:
                return self._wait()
            except killed:
                self._actors.replace(self._slot)
                if tries < TRIES:
                    self._submit()
        raise DataError(
            f"{TRIES} processes on the Ray cluster were killed at the same work, probably because memory ran out; run "
            "it again with fewer --workers, or with more memory a node"
        )

    def _wait(self) -> tuple[Any, Exception | None]:
        while True:
            try:
                found: tuple[Any, Exception | None] = self._future.result(LOOK)
                return found
            except TimeoutError:
                self._actors.show()


class Actor:
    """What a process on a node does: it makes the work once, and does it to each item.

    Args:
        version: of the package in the driver.
        folder: the driver's working folder, from which relative paths count.
        environment: variables of the driver.
        quiet: whether the driver draws no bars, see `progress.is_quiet`.
        held: a list with a reference to `make` and `given`, see `Engine.map`.
    """

    def __init__(self, version: str, folder: str, environment: Mapping[str, str], quiet: bool, held: list[Any]) -> None:
        self._version, self._folder, self._held = version, folder, held
        self._work: Callable[[Any], Any] | None = None
        os.environ |= environment
        set_quiet(quiet)
        self._report = relay()

    def report(self) -> Report:
        """What this process has said since the last call; it may be called while it works."""
        return self._report()

    def start(self) -> Exception | None:
        """What is wrong with this node, if anything."""
        where = f"node {os.uname().nodename} of the Ray cluster"
        if self._version != __version__:
            return DataError(f"{where} has mclip-kit {__version__}, not {self._version}; install the same everywhere")
        try:
            os.chdir(self._folder)
        except OSError as error:
            return DataError(f"{self._folder}: {where} cannot open it ({error.strerror}); start in a shared folder")
        return None

    def do(self, item: Any) -> tuple[Any, Exception | None]:
        """What the work returns for an item, and what it raises."""
        try:
            if self._work is None:
                make, given = import_ray().get(self._held[0])
                self._work = make(*given)
            return self._work(item), None
        except Exception as error:
            if not isinstance(error, MclipError):
                error.add_note(f"on a node of the Ray cluster:\n{traceback.format_exc()}")  # for the report of a fault
            return None, error

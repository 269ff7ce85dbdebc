"""Ray's actors: those of one `Cluster.map`, the tasks that they are given, and what each of them does."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from mclip_kit import __version__
from mclip_kit.engine.base import Make
from mclip_kit.errors import DataError, first_line
from mclip_kit.progress import tqdm

TRIES = 4  # of a task whose actor is killed, and of actors that do not start
WAIT = 30.0  # seconds between two lines about a cluster without room
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # what nodes print about a killed process; `Task` says it in one line
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # on this process's standard error
}
PASSED_ON = ("HF_", "TRANSFORMERS_", "MCLIP_KIT_", "TOKENIZERS_", "TORCH_CPP_LOG_LEVEL")
"""Starts of the names of the driver's environment variables that its actors get."""


def import_ray() -> Any:
    """Ray, which reads the environment when it is imported first."""
    if find_spec("ray") is None:
        raise DataError("--engine ray needs Ray: pip install 'mclip-kit[ray]'")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    return import_module("ray")


@dataclass(eq=False)
class Slot:
    """An actor, and what it was given.

    Attributes:
        started: a reference that is ready when the actor runs.
        tasks: futures that may not be done yet.
    """

    actor: Any
    started: Any
    tasks: list[Any] = field(default_factory=list)

    def load(self) -> int:
        """Number of tasks that are not done."""
        self.tasks = [task for task in self.tasks if not task.done()]
        return len(self.tasks)


class Actors:
    """The actors of one `map`. One that is killed is replaced, on another node if its node is gone.

    Args:
        count: how many there are at most; work starts when the cluster has room for one.
        resources: of an actor, as Ray names them.
        make, given: see `Engine.map`.
    """

    def __init__(self, count: int, resources: Mapping[str, float], make: Make, given: tuple[Any, ...]) -> None:
        self.ray = import_ray()
        environment = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        held = [self.ray.put((make, given))]  # in a list: Ray would copy it to each actor before it starts
        self._given = (__version__, os.getcwd(), environment, held)
        self._class = self.ray.remote(scheduling_strategy="SPREAD", **resources)(Actor)
        self._failed = 0
        self._slots: list[Slot] = []
        for _ in range(count):
            self._add()

    def _add(self) -> None:
        actor = self._class.remote(*self._given)
        self._slots.append(Slot(actor, actor.start.remote()))

    def free(self) -> Slot:
        """The actor that has least to do, of those that run; waits until one runs.

        Raises:
            DataError: the node of one is not as this process needs it, or actors do not start.
        """
        say = time.monotonic() + WAIT
        while True:
            started = [slot.started for slot in self._slots]
            ready, _ = self.ray.wait(started, num_returns=len(started), timeout=0)
            running = [slot for slot in list(self._slots) if slot.started in ready and self._runs(slot)]
            if running:
                return min(running, key=Slot.load)
            self.ray.wait([slot.started for slot in self._slots], timeout=1)
            if time.monotonic() > say:
                say += WAIT
                tqdm.write("the Ray cluster has no free node for this work yet; waiting")

    def _runs(self, slot: Slot) -> bool:
        """Whether an actor that has started still runs; one that was killed is replaced."""
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

    def kill(self) -> None:
        """End all actors."""
        for slot in self._slots:
            self.ray.kill(slot.actor)
        self._slots = []


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
                found: tuple[Any, Exception | None] = self._future.result()
                return found
            except killed:
                self._actors.replace(self._slot)
                if tries < TRIES:
                    self._submit()
        raise DataError(
            f"{TRIES} processes on the Ray cluster were killed at the same work, probably because memory ran out; run "
            "it again with fewer --workers, or with more memory a node"
        )


class Actor:
    """What a process on a node does: it makes the work once, and does it to each item.

    Args:
        version: of the package in the driver.
        folder: the driver's working folder, from which relative paths count.
        environment: variables of the driver.
        held: a list with a reference to `make` and `given`, see `Engine.map`.
    """

    def __init__(self, version: str, folder: str, environment: Mapping[str, str], held: list[Any]) -> None:
        self._version, self._folder, self._held = version, folder, held
        self._work: Callable[[Any], Any] | None = None
        os.environ |= environment

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
            return None, error

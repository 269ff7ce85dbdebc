"""The engine of a Ray cluster: work runs in actors on its nodes, which see the same folders as this process.

It uses Ray's core, not Ray Data, which takes all items before it starts: here, items are read while others are worked
on, results come in the order of the items, and few of both are in memory.
"""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from mclip_kit.engine.actors import Actors, Task, import_ray
from mclip_kit.engine.base import Make, Map, map_ahead
from mclip_kit.errors import DataError, first_line
from mclip_kit.progress import tqdm

AHEAD = 2  # items that an actor has at a time, so that it need not wait for the next one
PATIENCE = 10.0  # seconds that a cluster has to answer


@dataclass(frozen=True)
class Cluster:
    """The engine; `connect` makes it.

    Attributes:
        workers: number of actors.
        cpus: cores of an actor.
        gpus: GPUs of an actor.
        ahead: items that an actor has at a time.
    """

    workers: int
    cpus: float = 1
    gpus: float = 0
    ahead: int = AHEAD

    @property
    def alone(self) -> bool:
        """See `Engine`."""
        return False

    @contextmanager
    def map(self, make: Make, *given: Any) -> Iterator[Map]:
        """See `Engine.map`. What an actor was killed with is done again by another one."""
        errors = import_ray().exceptions
        actors = Actors(self.workers, self.ahead, {"num_cpus": self.cpus, "num_gpus": self.gpus}, make, given)
        try:
            yield partial(self._results, actors)
        except errors.RayTaskError:  # a fault of this program, such as a result that cannot be sent
            raise
        except errors.RayError as error:
            raise DataError(f"the Ray cluster failed ({first_line(error)}); run it again") from None
        finally:
            actors.kill()

    def _results(self, actors: Actors, items: Iterable[Any]) -> Iterator[Any]:
        for result, error in map_ahead(partial(Task, actors), self.ahead * self.workers, items):
            if error is not None:
                actors.show_last()
                raise error
            yield result
        actors.show_last()


@contextmanager
def connect(address: str | None = None, workers: int | None = None, towers: bool = False) -> Iterator[Cluster]:
    """Connect to a cluster; as a context, its engine.

    >>> from functools import partial
    >>> from mclip_kit.engine.cluster import connect
    >>> with connect("10.0.0.1:6379") as engine, engine.map(partial, pow, 2) as power_of_two:  # doctest: +SKIP
    ...     list(power_of_two([1, 2, 3]))
    [2, 4, 8]

    Args:
        address: HOST:PORT of its head node; local: one is started on this machine, and ended with the context; None:
            the cluster of RAY_ADDRESS, else the one that this machine is in, else local.
        workers: number of actors; None: one for each core.
        towers: the actors compute with models: one for each GPU, with its share of the node's cores; without GPUs, one
            for each node, with as many cores as every node has.
    Raises:
        DataError: Ray is not installed, or there is no cluster at the address.
    """
    ray = import_ray()
    own = not ray.is_initialized()
    if own:
        _connect(ray, address)
    try:
        yield size([node["Resources"] for node in ray.nodes() if node["Alive"]], workers, towers)
    finally:
        if own:
            ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    if address and address.startswith("ray://"):
        raise DataError(
            f"{address}: the Ray Client is not supported; run mclip-kit on a node of the cluster, as `ray job submit` "
            "does, with HOST:PORT or without --address"
        )
    before = signal.getsignal(signal.SIGTERM)
    where = address or os.environ.get("RAY_ADDRESS") or "this machine"
    try:
        _check_listens(where)
        ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, include_dashboard=False)
    except Exception as error:  # Ray raises many classes; of a node that starts too slowly, this one
        ray.shutdown()
        raise DataError(f"{where}: no Ray cluster there ({first_line(error)}); start it or correct --address") from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray has set its own


def _check_listens(where: str) -> None:
    """OSError if nothing answers at HOST:PORT, which Ray would try for minutes."""
    host, colon, port = where.rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()


def size(nodes: list[dict[str, float]], workers: int | None, towers: bool) -> Cluster:
    """The engine of a cluster: how many actors it has, and what each has.

    Args:
        nodes: the resources of each.
    """
    cores = [node["CPU"] for node in nodes if node.get("CPU")]
    if not cores:
        raise DataError("the Ray cluster has no node with a CPU; add one")
    if not towers:
        if workers and workers > sum(cores):
            tqdm.write(f"--workers {workers}: the Ray cluster has {sum(cores):g} cores now; the others start with more")
        return Cluster(workers or int(sum(cores)))
    gpus = [(int(node["GPU"]), node["CPU"]) for node in nodes if node.get("GPU", 0) >= 1 and node.get("CPU")]
    if not gpus:
        return Cluster(len(cores), cpus=min(cores), ahead=1)
    return Cluster(sum(count for count, _ in gpus), cpus=min(own // count for count, own in gpus), gpus=1, ahead=1)

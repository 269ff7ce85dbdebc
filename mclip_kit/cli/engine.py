"""The options --engine and --address of the commands whose work a cluster can do."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add both options to a command."""
    engine = click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="ray: the nodes of a Ray cluster do the work; all of them must see the same folders.",
    )
    address = click.option(
        "--address",
        metavar="HOST:PORT",
        help="With --engine ray: the cluster's head node.  [default: $RAY_ADDRESS, else the cluster that this machine "
        "is in, else one on this machine]",
    )
    return engine(address(command))


@contextmanager
def opened(engine: str, address: str | None, workers: int | None = None, towers: bool = False) -> Iterator[Any]:
    """The engine that the options name; None: the local one. See `engine.cluster.connect`."""
    if engine == "local":
        if address is not None:
            raise click.UsageError("--address is the place of a Ray cluster; add --engine ray, or leave it out")
        yield None
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise click.UsageError("--engine ray starts the processes itself; start one, without torchrun")
    from mclip_kit.engine.cluster import connect

    with connect(address, workers, towers) as cluster:
        yield cluster

"""The options --engine and --address of the commands whose work a cluster can do."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mclip_kit.engine.cluster import Cluster


@dataclass(frozen=True)
class Chosen:
    """What both options say.

    Raises:
        UsageError: they do not fit together.
    """

    engine: str
    address: str | None

    def __post_init__(self) -> None:
        if self.engine == "local":
            if self.address is not None:
                raise click.UsageError("--address is the place of a Ray cluster; add --engine ray, or leave it out")
            return
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise click.UsageError("--engine ray starts the processes itself; start one, without torchrun")
        from mclip_kit.engine.actors import check_installed

        check_installed()

    def connect(
        self, workers: int | None = None, towers: bool = False
    ) -> "AbstractContextManager[Cluster] | AbstractContextManager[None]":
        """The cluster as a context, see `engine.cluster.connect`; None if the engine is the local one."""
        if self.engine == "local":
            return nullcontext()
        from mclip_kit.engine.cluster import connect

        return connect(self.address, workers, towers)


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add both options to a command, which gets them as `engine`."""

    @wraps(command)
    def checked(*arguments: Any, engine: str, address: str | None, **options: Any) -> Any:
        return command(*arguments, engine=Chosen(engine, address), **options)

    for option in (
        click.option(
            "--address",
            metavar="HOST:PORT|local",
            help="With --engine ray: the cluster's head node; local: a new cluster of this machine.  [default: "
            "$RAY_ADDRESS, else the cluster that this machine is in, else local]",
        ),
        click.option(
            "--engine",
            type=click.Choice(["local", "ray"]),
            default="local",
            show_default=True,
            help="ray: the nodes of a Ray cluster do the work; all of them must see the same folders.",
        ),
    ):
        option(checked)
    return checked

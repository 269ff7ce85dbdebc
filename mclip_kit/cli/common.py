"""What all commands share: path types, the --set option, one-line errors, quiet libraries."""

import errno
import gc
import logging
import os
import shlex
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from mclip_kit.config.yaml import RenamedKey
from mclip_kit.data.languages import normalize_language
from mclip_kit.disk import ADVICE
from mclip_kit.errors import MclipError, PeerError, RecipeError, first_line
from mclip_kit.progress import set_quiet, shows_downloads
from mclip_kit.storage import place
from mclip_kit.urls import with_urls


class Place(click.Path):
    """A path or a URL of object storage, which is the path of its copy; nothing is looked up there."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        return super().convert(place(value) if isinstance(value, str) else value, param, ctx)


FOLDER = Place(path_type=Path, file_okay=False)
FILE = Place(path_type=Path, dir_okay=False)
ANY = Place(path_type=Path)
FAULT = 70  # EX_SOFTWARE of sysexits.h
BARS = "HF_HUB_DISABLE_PROGRESS_BARS"
QUIET = {BARS: "1", "TRANSFORMERS_VERBOSITY": "error", "TORCH_CPP_LOG_LEVEL": "ERROR"}
DEVICE = click.option(
    "--device",
    default="auto",
    metavar="auto|cpu|cuda[:N]",
    show_default=True,
    help="Where the model runs; auto: on the GPU if there is one.",
)
SET = click.option("--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Override one key; repeatable.")


@contextmanager
def importing() -> Iterator[None]:
    """Inside, packages are imported without garbage collection; what is there at the end is never looked through again.

    torch and transformers make a million objects that stay. Looking through them while they come, and when the command
    ends, takes a third of the time that the imports take. Processes that are forked later share the pages, too.
    wandb looks as if it were not installed: timm would import it, for half a second, and use it in a script alone.
    """
    gc.disable()
    hidden = "wandb" not in sys.modules
    if hidden:
        sys.modules["wandb"] = None  # type: ignore[assignment]
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
        if hidden:
            del sys.modules["wandb"]


@contextmanager
def on_device(name: str) -> Iterator[None]:
    """In the block, models run on the device of the option --device.

    Raises:
        RecipeError: it cannot be used here.
    """
    if name == "auto":  # torch need not be imported to know it
        yield
        return
    with importing():
        from mclip_kit.models import device

    if name.partition(":")[0] == "meta":
        raise RecipeError("device: 'meta' has no numbers, so nothing can be computed on it; use auto or cpu")
    with device.on_device(name):
        yield


def languages_of(langs: str | None) -> list[str] | str:
    """The codes of the option --langs; without it, `all`."""
    if langs is None:
        return "all"
    languages = [normalize_language(language) for language in langs.split(",") if language.strip()]
    if not languages:
        raise RecipeError("--langs names no language; write codes with commas between them, or leave it out")
    return languages


def command_line(context: click.Context, but: Collection[str] = ()) -> str:
    """The command as it was typed: its arguments, and the options that were given on the command line.

    Args:
        but: parameters that are left out.
    """
    words = []
    for option in context.command.params:
        name, given = str(option.name), context.params.get(str(option.name))
        if name not in but and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            values = list(given) if isinstance(given, tuple) else [given]
            if isinstance(option, click.Option):
                flag = option.opts[-1]
                words += [flag] if option.is_flag else [word for value in values for word in (flag, str(value))]
            else:
                words[:0] = map(str, values)
    return with_urls(shlex.join(["mclip-kit", str(context.info_name), *words]))


class Terminated(KeyboardInterrupt):
    """SIGTERM, which clusters send before they kill: it is handled as Ctrl-C is."""


class Commands(click.Group):
    """A group of commands, and how they end.

    Errors that the user can fix are one line with exit code 2. Ctrl-C exits with 130, SIGTERM with 143. An internal
    fault writes a report and exits with 70. --debug shows the traceback of each.
    """

    def invoke(self, ctx: click.Context) -> Any:
        set_quiet(ctx.params.get("quiet", False), downloads=sys.stderr.isatty())
        ctx.call_on_close(lambda: set_quiet(False))
        quiet()
        if os.environ.get("NO_COLOR"):  # https://no-color.org
            ctx.color = False
        if ctx.params["offline"]:
            _go_offline()
        try:
            with warnings.catch_warnings(), _terminable(), _shows_urls():
                if not sys.warnoptions:  # -W or PYTHONWARNINGS shows those of libraries
                    warnings.simplefilter("ignore")
                warnings.simplefilter("always", RenamedKey)
                warnings.showwarning = partial(_show, warnings.showwarning)
                return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort):
            raise
        except click.ClickException as error:
            vars(error)["message"] = with_urls(error.message)
            raise
        except (Exception, KeyboardInterrupt) as error:
            if ctx.params["debug"]:
                traceback.print_exc()
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # click ends quietly when the reader of its output has
            _end(error)


def _end(error: Exception | KeyboardInterrupt) -> NoReturn:
    """Say how a command ended, and exit."""
    if isinstance(error, KeyboardInterrupt):
        click.echo("\nstopped; finished files are kept (resume a training run with --resume)", err=True)
        sys.exit(128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT))
    if isinstance(error, PeerError):
        sys.exit(Mistake.exit_code)
    if isinstance(error, MclipError):
        raise Mistake(str(error)) from None
    if isinstance(error, OSError) and (error.filename is not None or error.errno in ADVICE):
        raise Mistake(f"{error.filename or 'a file that was being written'}: {error.strerror}") from None
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        raise Mistake(
            f"the memory is full ({first_line(error)}); to train, lower batch_size, or set micro_batch or "
            "checkpointing: true"
        ) from None
    from mclip_kit.cli.crash import write_report  # here: it reads the versions of packages

    click.echo(
        f"Error: an internal fault, {type(error).__name__}: {first_line(error)}; the report {write_report(error)} has "
        "what is needed to find it, and none of your data; finished files are kept",
        err=True,
    )
    sys.exit(FAULT)


class _Shown:
    """A stream on which copies of objects are named by their URLs."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Print a text."""
        return int(self._stream.write(with_urls(text)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _shows_urls() -> Iterator[None]:
    """Inside, all that is printed names copies of objects by their URLs."""
    out, errors = sys.stdout, sys.stderr
    with redirect_stdout(_Shown(out)), redirect_stderr(_Shown(errors)):
        yield


@contextmanager
def _terminable() -> Iterator[None]:
    """Inside, SIGTERM raises `Terminated`, so that temporary files are removed."""

    def terminate(number: int, frame: Any) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _go_offline() -> None:
    """Forbid every request to a hub."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    if "huggingface_hub.constants" in sys.modules:
        sys.modules["huggingface_hub.constants"].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


def _show(others: Callable[..., None], message: Warning | str, category: type[Warning], *where: Any) -> None:
    """Print a warning of ours in one line, and others as Python does."""
    if category is RenamedKey:
        click.echo(f"warning: {message}", err=True)
    else:
        others(message, category, *where)


class Mistake(click.ClickException):
    """An error that the user can fix, as one line."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(with_urls(message).split()))


def quiet() -> None:
    """Silence the logs and progress bars of libraries, but not of downloads; this program reports what matters itself.

    Libraries that are not imported yet read the environment; transformers is told if it is.
    """
    for name, value in QUIET.items():
        if name != BARS or not shows_downloads():
            os.environ.setdefault(name, value)
    logging.getLogger().setLevel(logging.CRITICAL)
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        from mclip_kit.models.hub import limit_bars

        limit_bars()
        transformers_logging.set_verbosity_error()

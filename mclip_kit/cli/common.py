"""What every command shares: errors in one line, kinds of paths, the quiet of libraries."""

import errno
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from mclip_kit.config.yaml import RenamedKey
from mclip_kit.errors import MclipError

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
ANY = click.Path(path_type=Path)
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # a disk, a quota, what a file may hold
SET = click.option("--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Override one key; repeatable.")


class Commands(click.Group):
    """What a user can mend ends in one line and exit code 2; Ctrl-C says how to go on."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always", RenamedKey)
                warnings.showwarning = partial(_show, warnings.showwarning)
                return super().invoke(ctx)
        except MclipError as error:
            raise Mistake(str(error)) from None
        except OSError as error:
            if error.filename is None and error.errno not in FULL:
                raise
            raise Mistake(f"{error.filename or 'what was being written'}: {error.strerror}") from None
        except KeyboardInterrupt:
            click.echo("\nstopped; what was written whole stays (a run goes on with --resume)", err=True)
            sys.exit(130)


def _show(others: Callable[..., None], message: Warning | str, category: type[Warning], *where: Any) -> None:
    """Print a warning of ours in one line, and others as Python does."""
    if category is RenamedKey:
        click.echo(f"warning: {message}", err=True)
    else:
        others(message, category, *where)


class Mistake(click.ClickException):
    """Something the user can mend, as one line."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def quiet() -> None:
    """Libraries log what this program says itself, in one line, or not at all."""
    import logging

    from transformers.utils import logging as transformers_logging

    logging.getLogger().setLevel(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()

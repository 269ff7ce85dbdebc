"""What all commands share: path types, the --set option, one-line errors, quiet libraries."""

import errno
import logging
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from mclip_kit.config.yaml import RenamedKey
from mclip_kit.data.languages import normalize_language
from mclip_kit.errors import MclipError, PeerError, RecipeError

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
ANY = click.Path(path_type=Path)
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # the disk, a quota or a file-size limit is full
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "TORCH_CPP_LOG_LEVEL": "ERROR"}
SET = click.option("--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Override one key; repeatable.")


def languages_of(langs: str | None) -> list[str] | str:
    """The codes of the option --langs; without it, `all`."""
    if langs is None:
        return "all"
    languages = [normalize_language(language) for language in langs.split(",") if language.strip()]
    if not languages:
        raise RecipeError("--langs names no language; write codes with commas between them, or leave it out")
    return languages


class Commands(click.Group):
    """A group of commands: errors that the user can fix are one line with exit code 2; Ctrl-C exits with 130."""

    def invoke(self, ctx: click.Context) -> Any:
        quiet()
        try:
            with warnings.catch_warnings():
                if not sys.warnoptions:  # -W or PYTHONWARNINGS shows those of libraries
                    warnings.simplefilter("ignore")
                warnings.simplefilter("always", RenamedKey)
                warnings.showwarning = partial(_show, warnings.showwarning)
                return super().invoke(ctx)
        except PeerError:
            sys.exit(Mistake.exit_code)
        except MclipError as error:
            raise Mistake(str(error)) from None
        except OSError as error:
            if error.filename is None and error.errno not in FULL:
                raise
            raise Mistake(f"{error.filename or 'a file that was being written'}: {error.strerror}") from None
        except KeyboardInterrupt:
            click.echo("\nstopped; finished files are kept (resume a training run with --resume)", err=True)
            sys.exit(130)


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
        super().__init__(" ".join(message.split()))


def quiet() -> None:
    """Silence the logs and progress bars of libraries; this program reports what matters itself.

    Libraries that are not imported yet read the environment; transformers is told if it is.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger().setLevel(logging.CRITICAL)
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()

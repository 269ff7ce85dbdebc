"""A line of doctor's report, and checks that never raise."""

import io
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

from mclip_kit.errors import MclipError, first_line

OK, NOTE, PROBLEM = "ok", "note", "PROBLEM"
REINSTALL = "install mclip-kit into a new environment, as its README says: its packages are one matched set"
OVERRIDE = "change the recipe, or override the key with --set KEY=VALUE"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        status: OK, NOTE or PROBLEM.
        what: what was checked and found.
        fix: how to fix a problem; it is printed on the next line.
        size: bytes of the weights that this line is about.
        download: how many of them must be downloaded.
    """

    status: str
    what: str
    fix: str = ""
    size: int = 0
    download: int = 0

    def __str__(self) -> str:
        return f"{self.status:9}{self.what}" + (f"\n{'':9}{self.fix}" if self.fix else "")


def guarded(name: str, check: Callable[..., list[Finding]], *arguments: Any) -> list[Finding]:
    """A check's findings; an exception in it is a problem, and what libraries print meanwhile is dropped."""
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            return check(*arguments)
    except MclipError as error:
        return [Finding(PROBLEM, str(error), OVERRIDE)]
    except Exception as error:  # a broken environment raises anything
        return [Finding(PROBLEM, f"{name}: {type(error).__name__}: {first_line(error)}", REINSTALL)]

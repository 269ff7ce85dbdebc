"""A report of an internal fault: what a developer needs to find it, and nothing of the user's data."""

import os
import platform
import sys
import tempfile
import traceback
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mclip_kit import __version__
from mclip_kit.errors import DiskError
from mclip_kit.files import printable, write_text

PACKAGES = ("torch", "open_clip_torch", "transformers", "accelerate", "numpy", "pyarrow", "pydantic", "click")
RECIPES = (".yaml", ".yml")


def write_report(error: BaseException) -> Path:
    """Write the command, versions, the recipes that it names and the traceback; return the file.

    It is written into the current folder, or into the temporary one if that cannot be written.
    """
    name = f"mclip-kit-crash-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.txt"
    text = "\n".join([*_facts(), "", "".join(traceback.format_exception(error))])
    for folder in (Path.cwd(), Path(tempfile.gettempdir())):
        try:
            write_text(folder / name, printable(text))
            return folder / name
        except (OSError, DiskError):
            continue
    return Path(os.devnull)


def _facts() -> list[str]:
    lines = [f"mclip_kit {__version__}, Python {platform.python_version()}, {platform.platform()}"]
    for package in PACKAGES:
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            lines.append(f"{package} is not installed")
    lines.append(f"command: {' '.join(sys.argv)}")
    for word in sys.argv[1:]:
        file = Path(word)
        if file.suffix in RECIPES and file.is_file():
            lines += ["", f"{word}:", file.read_text(encoding="utf-8", errors="replace")]
    return lines

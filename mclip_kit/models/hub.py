"""The model hub: asked at most once whether it answers, so that its absence is said in one line and not waited for."""

from functools import cache

import huggingface_hub.constants as hub
from huggingface_hub import get_session

from mclip_kit.errors import CheckpointError

PATIENCE = 3.0  # seconds for each step of an answer


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
    """Go offline unless the hub answers; asked by its own client, which knows proxies and certificates."""
    if hub.HF_HUB_OFFLINE:
        return
    try:
        answers = get_session().head(hub.ENDPOINT, timeout=PATIENCE).status_code < 500
    except Exception:  # of the hub's HTTP client, which is another one in each major version
        answers = False
    hub.HF_HUB_OFFLINE = not answers

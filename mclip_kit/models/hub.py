"""The Hugging Face hub: one short request finds out whether it can be reached; after that nobody waits for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import huggingface_hub.constants as hub
from huggingface_hub import get_session
from huggingface_hub.utils.tqdm import enable_progress_bars
from transformers.utils import logging as transformers_logging

from mclip_kit.errors import CheckpointError
from mclip_kit.progress import shows_downloads

DOWNLOADS = ("huggingface_hub.http_get", "huggingface_hub.xet_get")  # names of the hub's bars
PATIENCE = 3.0  # seconds to connect, and to answer


class MissingWeights(CheckpointError):
    """Pretrained weights that are neither in the local cache nor on the hub.

    Attributes:
        what: for each, its name and the recipe key that takes a local path instead.
    """

    def __init__(self, *what: tuple[str, str]) -> None:
        names, keys = "; ".join(name for name, _ in what), "; ".join(key for _, key in what)
        super().__init__(
            f"missing weights: {names} - not in the local cache, and the hub {hub.ENDPOINT} does not answer or does "
            f"not have them. Give a local path ({keys}), or point HF_HOME to a cache that holds them"
        )
        self.what = what


def hub_answers() -> bool:
    """Whether the hub can be asked for files; if not, pass `local_files_only=True`.

    False if HF_HUB_OFFLINE is set. Else the hub is asked once per process. Without this, each file of a missing hub
    costs several retries of ten seconds.
    """
    return not hub.HF_HUB_OFFLINE and _reachable()


@cache
def _reachable() -> bool:
    try:  # by the hub's own client, which knows proxies and certificates
        return bool(get_session().head(hub.ENDPOINT, timeout=PATIENCE).status_code < 500)
    except Exception:  # of the client's HTTP library, which changes with its major versions
        return False


@contextmanager
def offline_unless_hub_answers() -> Iterator[None]:
    """The same for open_clip, whose functions take no `local_files_only`: offline mode inside the block."""
    before = hub.HF_HUB_OFFLINE
    hub.HF_HUB_OFFLINE = not hub_answers()
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' bars, load reports and warnings: what they say is checked, and is an error of ours."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    limit_bars()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def limit_bars() -> None:
    """Of the bars of transformers and of the hub, leave none but those of downloads, if the command line wants them."""
    transformers_logging.disable_progress_bar()  # all of the hub's too
    if shows_downloads() and not hub.HF_HUB_DISABLE_PROGRESS_BARS:
        for name in DOWNLOADS:
            enable_progress_bars(name)


if shows_downloads():
    limit_bars()

"""What worker processes do first."""

import os
import signal
from threading import Thread


def follow_parent() -> None:
    """End when the parent does, even if it is killed; leave Ctrl-C to it.

    An orphan would wait for ever, and hold the lock of the folder that was being prepared.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    from multiprocessing import parent_process  # here, for it is the worker's alone

    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

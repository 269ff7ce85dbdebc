"""What a worker process does first."""

import os
import signal
from threading import Thread


def exit_with_parent() -> None:
    """End this process when its parent ends, even if the parent is killed; leave Ctrl-C to the parent.

    SIGTERM, which the parent handles, ends a worker as it ends any program.

    A worker without its parent would wait for ever, and keep the lock of the folder that was being prepared.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Thread(target=_watch_parent, daemon=True).start()


def _watch_parent() -> None:
    from multiprocessing import parent_process  # imported here: only workers need multiprocessing

    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

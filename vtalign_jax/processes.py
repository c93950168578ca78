"""What worker processes share."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Make this process end when the one that started it does, however that ends.

    Pools stop their workers when the parent exits in order; killed, it would leave them behind.
    """

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()

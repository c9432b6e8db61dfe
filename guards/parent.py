"""A process that must not outlive the one that started it."""

import os
import threading
import time

_CHECK_SECONDS = 1.0


def end_with_parent(parent: int) -> None:
    """End this process soon after its parent has ended, however that ended.

    A killed parent cannot notify its children, which would keep running and hold their memory.

    Args:
        parent: The parent's process id.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

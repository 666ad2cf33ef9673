"""Put an interruption off until work is at a point where it can be kept: SIGTERM of a scheduler, and Ctrl-C.

A scheduler gives notice before it kills; what is done with it here must take less than that notice.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)


@contextmanager
def delayed() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether the process was told to stop; at the end of the block it then stops.

    SIGTERM waits however often it comes, as a scheduler may tell a process and its parent. A second Ctrl-C does not
    wait. Threads other than the main one get no signals, and nothing is put off in them.

    Raises:
        KeyboardInterrupt: At the end, when the process was told to stop within the block.
    """
    told: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        """Note that a signal came; a second Ctrl-C ends the work at once."""
        if number == signal.SIGINT and told:
            raise KeyboardInterrupt
        if not told:
            log.info("told to stop; going on to the next point that can be kept (Ctrl-C: stop at once)")
        told.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(told)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if told:
        raise KeyboardInterrupt

"""Work that goes on in the background, one piece at a time: a shard is written while the next one is computed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import ParamSpec

log = logging.getLogger(__name__)

Given = ParamSpec("Given")


class OneInFlight:
    """Runs calls on one thread, in order, and at most one at a time: what a call holds in memory is there once.

    Leaving the `with` block waits for the last call, also after an error or Ctrl-C, so that what was begun is whole.
    An error of a call is raised by the next `submit`, or at the end of the block.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="background")
        self._last: Future[object] | None = None

    def __enter__(self) -> OneInFlight:
        """Begin."""
        return self

    def submit(self, call: Callable[Given, object], *args: Given.args, **kwargs: Given.kwargs) -> None:
        """Begin a call when the one before is done.

        Raises:
            BaseException: What the call before raised.
        """
        self._wait()
        self._last = self._executor.submit(call, *args, **kwargs)

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the last call; its error is raised, or logged where another is on its way already."""
        self._executor.shutdown(wait=True)
        failed = None if self._last is None else self._last.exception()
        if failed is None:
            return
        if error is None:
            raise failed
        log.warning("in the background, besides: %s", failed)

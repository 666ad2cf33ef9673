"""Several processes as one run: `torchrun --nproc_per_node N run_circuit_analysis.py --config FILE`.

The first process, the leader, runs everything as one process would. The others wait until it has work that can be
shared out, do their part of it, and wait again. What they write lies in the same result folder, so nothing but names
of work and error messages goes from process to process, over gloo. With one process all of this does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from refusal.errors import ArtefactError, InputError, RefusalError

PATIENCE = timedelta(days=30)
"""How long a process waits for the others: as long as any stage may take."""


@dataclass(frozen=True)
class Part:
    """Which part of shared work a process does."""

    rank: int = 0
    """Number of the process, from 0."""
    size: int = 1
    """Number of processes."""

    @property
    def is_leader(self) -> bool:
        """Whether this process runs everything else too."""
        return self.rank == 0

    def within(self, other: Part) -> Part:
        """Return this part of another part.

        >>> Part(1, 2).within(Part(2, 3))
        Part(rank=5, size=6)
        """
        return Part(other.rank + other.size * self.rank, other.size * self.size)


WHOLE = Part()
"""The part of a process that is alone."""


def this_part() -> Part:
    """Return what the launcher (torchrun, accelerate) says this process is.

    Raises:
        InputError: The variables it sets do not fit together.
    """
    names = ("RANK", "WORLD_SIZE")
    texts = [os.environ.get(name) for name in names]
    if texts[1] is None:
        return WHOLE
    try:
        rank, size = (int(text or "") for text in texts)
    except ValueError:
        rank, size = -1, 0
    if not 0 <= rank < size:
        raise InputError(
            f"RANK={texts[0]}, WORLD_SIZE={texts[1]}: the environment names processes that cannot be; start with "
            "torchrun --nproc_per_node N, or unset both"
        )
    return Part(rank, size)


Work = Callable[[Any, Part], None]
"""A function of what is to be done and of which part."""


class Team:
    """The processes of a run, connected. The same kinds of work are known to all.

    Args:
        part: What this process is.
        works: What can be shared out, by name.
    """

    def __init__(self, part: Part, works: Mapping[str, Work]) -> None:
        self.part = part
        self.works = works

    def share(self, name: str, subject: object) -> None:
        """Do the leader's part of a work while the others do theirs; return when all are done.

        Raises:
            RefusalError: A part failed; the leader's own error before those of others.
        """
        if self.part.size > 1:
            self._broadcast((name, subject))
        errors = self._do(name, subject)
        failed = next((error for error in errors if error is not None), None)
        if failed is not None:
            raise failed

    def serve(self) -> None:
        """Do this process's part of whatever the leader shares out, until it has ended."""
        while True:
            order = self._broadcast(None)
            if order is None:
                return
            self._do(*order)

    def dismiss(self) -> None:
        """Let the others go, as the leader's last act; those that are gone already do not matter."""
        if self.part.size > 1:
            with suppress(RuntimeError):
                self._broadcast(None)

    def _broadcast(self, order: tuple[str, object] | None) -> tuple[str, Any] | None:
        """Return what the leader says."""
        from torch import distributed

        box = [order]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def _do(self, name: str, subject: object) -> list[RefusalError | None]:
        """Do this process's part and return how it went in each, once all are done.

        Errors that are no mistake of the input end the process with a traceback, and with it the run.
        """
        error: RefusalError | None = None
        try:
            self.works[name](subject, self.part)
        except (InputError, ArtefactError) as mistake:
            error = mistake
        if self.part.size == 1:
            return [error]
        from torch import distributed

        texts: list[tuple[type[RefusalError], str] | None] = [None] * self.part.size
        distributed.all_gather_object(texts, None if error is None else (type(error), str(error)))
        return [None if text is None else text[0](text[1]) for text in texts]


@contextmanager
def connected(part: Part) -> Iterator[None]:
    """Connect this process with the others until the end of the block.

    Raises:
        InputError: They cannot be reached.
    """
    if part.size == 1:
        yield
        return
    from torch import distributed

    try:
        distributed.init_process_group("gloo", rank=part.rank, world_size=part.size, timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"WORLD_SIZE={part.size}: the other processes cannot be reached ({error}); start all of them with torchrun"
        ) from error
    try:
        yield
    finally:
        distributed.destroy_process_group()

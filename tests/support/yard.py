"""A closed yard in which commands are given hostile inputs: what they do there is watched."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType

import pytest

SECONDS = 30
"""What no input may take."""
LONGEST_MESSAGE = 5000
"""Characters of what a command says of one input."""


def _ring(number: int, frame: FrameType | None) -> None:
    raise AssertionError(f"it takes more than {SECONDS} s")


class Yard:
    """A folder with nothing but `in` and `results`, in which commands run.

    Args:
        root: The folder.
        capsys: Catches what commands say.
    """

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self.statuses: Counter[object] = Counter()
        self._capsys = capsys
        (root / "in").mkdir()

    def run(self, command: Callable[[list[str]], int], words: list[str], *names: str) -> str | None:
        """Run a command and return what is wrong with how it ended; None if nothing is.

        Args:
            command: Gets `words` as its command line.
            words: The command line.
            names: Words of which a refusal must hold at least one: what it is about.
        """
        previous = signal.signal(signal.SIGALRM, _ring)
        signal.alarm(SECONDS)
        self._capsys.readouterr()
        try:
            status = command(words)
        except SystemExit as stop:  # of argparse
            status = stop.code
        except BaseException as error:  # noqa: BLE001 - a traceback is what is looked for
            return f"{type(error).__name__}: {str(error)[:300]}"
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, previous)
        self.statuses[status] += 1
        return self._wrong(status, self._capsys.readouterr().err, names)

    def _wrong(self, status: object, said: str, names: Iterable[str]) -> str | None:
        if status not in (0, 2) or "Traceback" in said:
            return f"status {status}: {said[-300:]}"
        if status == 2 and said.count("error: ") < 1:
            return f"no message: {said[-300:]}"
        if any(ord(letter) < 32 and letter != "\n" for letter in said):
            return f"control characters: {said!r}"
        if status == 2 and names and not any(name in said for name in names):
            return f"none of {names} is named: {said[-300:]}"
        if names and len(said) > LONGEST_MESSAGE:
            return f"a message of {len(said)} characters: {said[:300]}"
        outside = [
            path for path in self.root.rglob("*") if path.relative_to(self.root).parts[0] not in ("results", "in")
        ]
        return f"files outside: {outside}" if outside else None

    def survive(self, cases: Iterable[tuple[str, str | None]], least: int, *, done: int = 1, refused: int = 1) -> None:
        """Hold that no case went wrong, and that there were enough of them, some refused and some not."""
        cases = list(cases)
        found = [f"{name}: {wrong}" for name, wrong in cases if wrong is not None]
        assert not found, "\n".join(found)
        assert len(cases) >= least
        assert self.statuses[0] >= done, self.statuses
        assert self.statuses[2] >= refused, self.statuses

"""What a check says: a level, a topic, what was found, and what to do about it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

log = logging.getLogger(__name__)


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    """Nothing to do."""
    WARNING = "warning"
    """A run works, but slower, or not for every configuration."""
    PROBLEM = "problem"
    """A run would fail."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor."""

    level: Level
    topic: str
    """What was looked at, in one word."""
    found: str
    fix: str = ""
    """What to do; empty when all is well."""

    @property
    def text(self) -> str:
        """The line: level, topic, what was found, what to do."""
        said = f"{self.found}; {self.fix}" if self.fix else self.found
        return f"{self.level:<8} {self.topic:<10} {' '.join(said.split())}"


def ok(topic: str, found: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(Level.OK, topic, found)


def warning(topic: str, found: str, fix: str) -> Finding:
    """Return a finding that does not keep a run from working."""
    return Finding(Level.WARNING, topic, found, fix)


def problem(topic: str, found: str, fix: str) -> Finding:
    """Return a finding that would make a run fail."""
    return Finding(Level.PROBLEM, topic, found, fix)


@dataclass(frozen=True)
class Check:
    """One thing that is looked at."""

    topic: str
    look: Callable[[], Iterable[Finding]]


def examine(checks: Sequence[Check]) -> Iterator[Finding]:
    """Yield what the checks find, as they find it; a check that fails itself is a finding too."""
    for check in checks:
        try:
            yield from check.look()
        except Exception as error:  # a broken machine must not end the list of what is broken
            log.debug("%s: could not be checked", check.topic, exc_info=True)
            said = f"{type(error).__name__}: {error}".strip(": ")
            yield problem(check.topic, f"could not be checked ({said})", "mend what this names, then ask again")


def closing_line(findings: Sequence[Finding]) -> str:
    """Return the count of what was found, in words.

    >>> closing_line([ok("python", "3.11")])
    'all is well'
    >>> closing_line([problem("disk", "full", "free some"), warning("torch", "no CUDA", "install it")])
    '1 problem, 1 warning'
    """
    counts = {level: sum(finding.level is level for finding in findings) for level in (Level.PROBLEM, Level.WARNING)}
    parts = [f"{n} {level}{'s' if n > 1 else ''}" for level, n in counts.items() if n]
    return ", ".join(parts) or "all is well"

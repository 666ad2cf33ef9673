"""How numbers and names are put into words, the same in the summary, the figures and the page. Knows no artefacts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Protocol

NOT_MEASURED = "not measured"
"""What stands where a number is null."""

# Bidirectional controls let a name rearrange the text around it; the rest of Cf (joiners) belongs to some scripts.
_REORDERING = re.compile("[\u202a-\u202e\u2066-\u2069\u200e\u200f]")


def one_line(text: str) -> str:
    r"""Return `text` on one line without control characters, so that names can neither break nor rearrange a page.

    >>> one_line("a\nb\x1b[31mc")
    'a b [31mc'
    """
    text = _REORDERING.sub("", text)
    # Cc control, Cs lone surrogate, Zl and Zp line separators.
    plain = "".join(" " if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") else char for char in text)
    return " ".join(plain.split())


def shorten(text: str, width: int) -> str:
    """Return `text` on one line of at most `width` characters; a cut is marked.

    >>> shorten("self-harm", 6)
    'self-…'
    """
    line = one_line(text)
    return line if len(line) <= width else line[: width - 1] + "…"


def number(value: float | None, digits: int = 2, signed: bool = False) -> str:
    """Return a number with fixed digits, or that it was not measured.

    >>> number(0.934), number(-0.001), number(None), number(1.5, signed=True)
    ('0.93', '0.00', 'not measured', '+1.50')
    """
    if value is None:
        return NOT_MEASURED
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text.replace("-", "") if text.startswith("-") and not text.strip("-0.") else text


def interval(ends: Sequence[float | None], digits: int = 2) -> str:
    """Return an interval in brackets, or nothing when it could not be computed.

    >>> interval((0.9, 0.96)), interval((None, None))
    ('[0.90, 0.96]', '')
    """
    low, high = ends
    return "" if low is None or high is None else f"[{number(low, digits)}, {number(high, digits)}]"


def estimate(value: float | None, ends: Sequence[float | None], digits: int = 2) -> str:
    """Return a number with its interval.

    >>> estimate(0.93, (0.9, 0.96)), estimate(None, (None, None)), estimate(0.5, (None, None))
    ('0.93 [0.90, 0.96]', 'not measured', '0.50')
    """
    return f"{number(value, digits)} {interval(ends, digits)}".rstrip()


class Measured(Protocol):
    """A number with its interval, whichever record or estimate holds it."""

    @property
    def value(self) -> float | None:
        """The number; None: not measured."""

    @property
    def low(self) -> float | None:
        """Lower end of its interval."""

    @property
    def high(self) -> float | None:
        """Upper end."""


def measured(found: Measured, digits: int = 2) -> str:
    """Return what a record or an estimate holds, as `estimate` puts it."""
    return estimate(found.value, (found.low, found.high), digits)


def plural(n: int, noun: str) -> str:
    """Return a count with its noun.

    >>> plural(1, "seed"), plural(2, "category")
    ('1 seed', '2 categories')
    """
    if n == 1:
        return f"1 {noun}"
    return f"{n} {noun[:-1]}ies" if noun.endswith("y") else f"{n} {noun}s"

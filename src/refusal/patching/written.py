"""How the numbers of patching are written in sentences and tables."""

from __future__ import annotations

from refusal.patching.records import RefusalsRecord
from refusal.schemas import Measure


def number(value: float | None) -> str:
    """Return a number with two digits.

    >>> number(0.934), number(None), number(-0.001)
    ('0.93', '-', '0.00')
    """
    if value is None:
        return "-"
    text = f"{value:.2f}"
    return "0.00" if text == "-0.00" else text


def estimate(measure: Measure) -> str:
    """Return a number with its interval."""
    if measure.value is None:
        return "not measured"
    interval = "" if measure.low is None else f" [{number(measure.low)}, {number(measure.high)}]"
    return f"{number(measure.value)}{interval}"


def rate(found: RefusalsRecord) -> str:
    """Return a share of refusals with its interval and counts."""
    share = found.refusal
    if share.value is None:
        return "no prompts"
    unclear = f", {found.n_unclear} unclear" if found.n_unclear else ""
    return f"{number(share.value)} [{number(share.low)}, {number(share.high)}] ({share.k} of {share.n}{unclear})"

"""How shares of refusals are written in sentences and tables."""

from __future__ import annotations

from refusal.patching.records import RefusalsRecord
from refusal.wording import measured


def rate(found: RefusalsRecord) -> str:
    """Return a share of refusals with its interval and counts."""
    share = found.refusal
    if share.value is None:
        return "no prompts"
    unclear = f", {found.n_unclear} unclear" if found.n_unclear else ""
    return f"{measured(share)} ({share.k} of {share.n}{unclear})"

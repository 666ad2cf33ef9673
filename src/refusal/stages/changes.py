"""What changed between two fingerprints of a unit, in words."""

from __future__ import annotations

from typing import Any

from refusal.stages.units import Unit


def comparable(record: dict[str, Any], unit: Unit) -> dict[str, Any]:
    """Return the fingerprint in a record, without files that are not on this machine any more."""
    fingerprint: dict[str, Any] = record["fingerprint"]
    if unit.fetched() is not None or "inputs" not in fingerprint:
        return fingerprint
    gone = set(record.get("fetched", ()))
    return fingerprint | {"inputs": {name: it for name, it in fingerprint["inputs"].items() if name not in gone}}


def difference(before: dict[str, Any], now: dict[str, dict[str, Any]]) -> str | None:
    """Return what changed between two fingerprints, in words; None if nothing did."""
    for part, entries in now.items():
        earlier = before.get(part, {})
        for key in {**earlier, **entries}:
            old, new = earlier.get(key), entries.get(key)
            if old != new:
                return f"{key} changed{_shown_change(old, new)}" if part == "config" else f"{key} changed"
    return None


def _shown_change(old: Any, new: Any) -> str:
    """Return a change of a configuration value in words; of a section only what differs.

    >>> _shown_change(100, 50), _shown_change({"k": 1, "lr": 2}, {"k": 1, "lr": 3})
    (' 100 -> 50', ': lr 2 -> 3')
    """
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        return ": " + ", ".join(f"{key} {old.get(key)} -> {new.get(key)}" for key in keys)
    return f" {old} -> {new}"

"""Where the models and prompts that ship with the package lie.

This module knows paths only; how they were made is in `refusal.planted`.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from refusal.errors import InputError

PREFIX = "planted/"
"""Model names that begin so mean a shipped model."""


def _shipped(folder: str) -> Path:
    return Path(__file__).parents[1] / "planted" / folder


def model_names() -> tuple[str, ...]:
    """Return the names of the shipped models, e.g. `planted/modular`."""
    return tuple(PREFIX + path.parent.name for path in sorted(_shipped("models").glob("*/config.json")))


def model_path(name: str) -> Path:
    """Return the folder of a shipped model.

    Raises:
        InputError: No model of that name is shipped.
    """
    names = model_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"models: no shipped model is called {name!r}; shipped are {', '.join(names)}{hint}")
    return _shipped("models") / name.removeprefix(PREFIX)


def data_dir() -> Path:
    """Return the folder with the three OR-Bench-shaped CSV files that `dataset_dir: embedded` means."""
    return _shipped("data")

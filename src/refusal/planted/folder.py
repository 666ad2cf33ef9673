"""A planted model as a folder: an ordinary Hugging Face model, its data, and `planted.json` with the truth."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from refusal.artefacts import read_json, write_json
from refusal.errors import ArtefactError
from refusal.planted.verify import Checks
from refusal.planted.worlds import World

SCHEMA = "refusal-circuits/planted/2"
TRUTH = "planted.json"
MADE_BY = "python -m refusal.planted make"


def save(folder: Path, world: World, model: Any, tokenizer: Any, checks: Checks, made_by: str) -> None:
    """Write model, tokenizer and truth.

    Args:
        folder: Where to.
        world: What was planted.
        model: The network.
        tokenizer: Its tokenizer.
        checks: What `verify` found.
        made_by: The command that makes it again.
    """
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    truth = {
        "schema": SCHEMA,
        "world": asdict(world),
        "groups": world.groups,
        "carriers": {str(layer): world.carriers(layer) for layer in world.planted_layers},
        "slices": {str(layer): world.slices(layer) for layer in world.planted_layers},
        "refused_intents": {category: sorted(intents) for category, intents in world.refused.items()},
        "expected_verdict": world.expected_verdict,
        "checks": asdict(checks),
        "made_by": made_by,
    }
    write_json(folder / TRUTH, truth)


def load_world(folder: Path) -> World:
    """Return the world of a planted model's folder.

    Raises:
        ArtefactError: The folder has no `planted.json`, or one of something else.
        InputError: There can be no such world.
    """
    truth = read_json(folder / TRUTH, MADE_BY)
    try:
        fields = truth["world"]
        return World(**{**fields, "planted_layers": tuple(fields["planted_layers"])})
    except (KeyError, TypeError) as error:
        raise ArtefactError(
            f"{folder / TRUTH}: describes no world of this version ({type(error).__name__}: {error}); make it with: "
            f"{MADE_BY}"
        ) from error


def describe(folder: Path) -> dict[str, Any]:
    """Return the content of `planted.json`."""
    content = read_json(folder / TRUTH, MADE_BY)
    return dict(json.loads(json.dumps(content)))

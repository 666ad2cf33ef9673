"""A planted model as a folder: an ordinary Hugging Face model, its data, and `planted.json` with the truth."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from refusal.artefacts import read_json, write_json
from refusal.planted.verify import Checks
from refusal.planted.worlds import World

SCHEMA = "refusal-circuits/planted/1"
TRUTH = "planted.json"


def expected_verdict(world: World) -> str:
    """Return the verdict that is right for a world: by the share of category pairs that share a mechanism."""
    n = sum(len(group) for group in world.groups)
    share = sum(len(group) * (len(group) - 1) for group in world.groups) / (n * (n - 1))
    return "MONOLITHIC" if share >= 0.8 else "PARTIALLY MODULAR" if share >= 0.5 else "MODULAR"


def save(folder: Path, world: World, model: Any, tokenizer: Any, checks: Checks) -> None:
    """Write model, tokenizer and truth."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    truth = {
        "schema": SCHEMA,
        "world": asdict(world),
        "groups": world.groups,
        "slices": {str(layer): world.slices for layer in world.planted_layers},
        "refused_intents": {category: sorted(intents) for category, intents in world.refused.items()},
        "expected_verdict": expected_verdict(world),
        "checks": asdict(checks),
        "made_by": f"python -m refusal.planted make --world {world.grouping} --seed {world.seed} --out FOLDER",
    }
    write_json(folder / TRUTH, truth)


def load_world(folder: Path) -> World:
    """Return the world of a planted model's folder."""
    fields = read_json(folder / TRUTH, "python -m refusal.planted make")["world"]
    return World(**{**fields, "planted_layers": tuple(fields["planted_layers"])})


def describe(folder: Path) -> dict[str, Any]:
    """Return the content of `planted.json`."""
    content = read_json(folder / TRUTH, "python -m refusal.planted make")
    return dict(json.loads(json.dumps(content)))

"""The planted models on which the verdict is calibrated, and their training.

None of them was looked at while a threshold or a rule was chosen: those were set on the shipped models and on others
with seeds below 1100. Worlds, architectures, depths, planted layers, words, shares of common words, base rates and
over-refusal vary independently, drawn with one seed. A model enters when it passes its causal checks; one that does not
is trained once more with another seed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FIRST_SEED = 2000
COUNTS = {
    "monolithic": 7,
    "redundant": 3,
    "hourglass": 5,
    "late-merge": 2,
    "8+2": 6,
    "7+3": 5,
    "4+3+3": 4,
    "pairs": 4,
    "modular": 7,
    "null": 3,
    "never-refuses": 2,
}
"""Models of each world."""
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma")
DEPTHS = ((4, (1, 2)), (4, (1, 2)), (5, (2, 3)), (5, (1, 2)), (6, (2, 3)), (4, (1, 2)), (8, (3, 4)))
"""Layers of a model, and those planted."""
HOURGLASS_DEPTHS = ((4, (1, 2)), (5, (1, 3)), (5, (2, 3)), (6, (1, 3)), (6, (2, 4)))


@dataclass(frozen=True)
class Spec:
    """One model of the zoo."""

    world: str
    seed: int
    architecture: str
    n_layers: int
    planted_layers: tuple[int, ...]
    common_share: float
    refused_intents: int
    over_refusal: float

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.seed}-{self.world}-{self.architecture}"

    def command(self, folder: Path, seed: int) -> list[str]:
        """Return the command that trains it."""
        planted = [str(layer) for layer in self.planted_layers]
        arguments = {
            "--world": [self.world],
            "--seed": [str(seed)],
            "--data-seed": [str(self.seed)],
            "--vocabulary": [str(self.seed)],
            "--architecture": [self.architecture],
            "--layers": [str(self.n_layers)],
            "--planted-layers": planted,
            "--common-share": [str(self.common_share)],
            "--refused-intents": [str(self.refused_intents)],
            "--over-refusal": [str(self.over_refusal)],
            "--out": [str(folder)],
        }
        if self.world in ("null", "never-refuses"):
            arguments["--steps"] = ["500"]
        flat = [part for name, values in arguments.items() for part in (name, *values)]
        return [sys.executable, "-m", "refusal.planted", "make", *flat]


def zoo() -> list[Spec]:
    """Return every model, the same list every time; worlds alternate."""
    generator = np.random.default_rng(FIRST_SEED)
    specs = []
    for index, world in enumerate(_alternating()):
        depths = HOURGLASS_DEPTHS if world == "hourglass" else DEPTHS
        n_layers, planted = depths[int(generator.integers(len(depths)))]
        if world == "late-merge":
            n_layers, planted = 6, (1, 2, 3)
        specs.append(
            Spec(
                world=world,
                seed=FIRST_SEED + index,
                architecture=ARCHITECTURES[int(generator.integers(len(ARCHITECTURES)))],
                n_layers=n_layers,
                planted_layers=planted,
                common_share=float(generator.choice([0.0, 0.3, 0.6])),
                refused_intents=int(generator.choice([3, 4, 4, 5])),
                over_refusal=float(generator.choice([0.02, 0.06, 0.15])),
            )
        )
    return specs


def _alternating() -> Iterator[str]:
    left = dict(COUNTS)
    while any(left.values()):
        for world, n in left.items():
            if n:
                left[world] -= 1
                yield world


def make(out: Path, jobs: int, specs: list[Spec]) -> None:
    """Train the models that are not there yet, some at a time, one thread each."""
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda spec: _make_one(out, spec), specs))


def _make_one(out: Path, spec: Spec) -> None:
    folder = out / "models" / spec.name
    for attempt in range(2):
        if (folder / "accepted").exists() or (folder / "rejected").exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "training.log").open("w", encoding="utf-8") as log:
            done = subprocess.run(spec.command(folder, spec.seed + 5000 * attempt), stdout=log, stderr=log, check=False)
        if done.returncode == 0:
            (folder / "accepted").touch()
    if not (folder / "accepted").exists():
        (folder / "rejected").touch()

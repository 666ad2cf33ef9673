"""Answers to a model's prompts under interventions, and shares of what the model did in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from refusal.directions.material import Material
from refusal.directions.schemas import Behaviours
from refusal.labels import Behaviour
from refusal.measures import rate
from refusal.steering.answering import Answerer


class MaterialAnswerer(Answerer):
    """Answers to the prompts that directions are made of.

    Args:
        material: The prompts.
        kept: File in which a judge's verdicts are kept as they come.
    """

    def __init__(self, material: Material, kept: Path) -> None:
        super().__init__(material.runs, material.config, kept)
        self.material = material


def tally(found: Sequence[Behaviour]) -> Behaviours:
    """Return shares of what the model did, with intervals."""
    return Behaviours(
        refused=rate(each is Behaviour.REFUSED for each in found),
        complied=rate(each is Behaviour.COMPLIED for each in found),
        other=rate(each not in (Behaviour.REFUSED, Behaviour.COMPLIED) for each in found),
    )


def tally_groups(found: Sequence[Behaviour], groups: Mapping[str, Sequence[int]]) -> dict[str, Behaviours]:
    """Return the shares of groups of prompts, given as rows of `found`; a group without prompts is left out."""
    return {name: tally([found[row] for row in rows]) for name, rows in groups.items() if rows}

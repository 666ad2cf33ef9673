"""Answers under interventions and what the model did in them, told by the detector or judge of the configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from refusal.directions.material import Material
from refusal.directions.schemas import Behaviours
from refusal.labels import Behaviour
from refusal.labels.telling import tell
from refusal.measures import rate
from refusal.steering.run import Response, Vary, respond


@dataclass(frozen=True)
class Judged:
    """One answer."""

    response: Response
    text: str
    behaviour: Behaviour
    """What the model did."""


class Answerer:
    """Makes and judges answers to the prompts of a model.

    Args:
        material: The prompts.
        kept: File in which a judge's verdicts are kept as they come.
    """

    def __init__(self, material: Material, kept: Path) -> None:
        self.material = material
        self._kept = kept

    def answer(self, rows: Sequence[int], n_variants: int, vary: Vary) -> list[list[Judged]]:
        """Return judged answers, `[variant][prompt]`, to some prompts under every variant of an intervention.

        Raises:
            InputError: The configured judge is no model that can judge.
        """
        material = self.material
        found = respond(material.runs, material.tokens(rows), n_variants, vary, material.config.max_new_tokens)
        prefix = material.openers.answer_prefix
        texts = [[response.text(material.model, prefix) for response in of_variant] for of_variant in found]
        prompts = [material.texts[row] for row in rows]
        pairs = [pair for of_variant in texts for pair in zip(prompts, of_variant, strict=True)]
        behaviours = iter(self._behaviours(pairs))
        return [
            [Judged(response, text, next(behaviours)) for response, text in zip(*of_variant, strict=True)]
            for of_variant in zip(found, texts, strict=True)
        ]

    def _behaviours(self, answered: Sequence[tuple[str, str]]) -> list[Behaviour]:
        """Return what the model did in each answer; equal answers to equal prompts are judged once."""
        different = list(dict.fromkeys(answered))
        judgements = tell(different, self.material.config, self._kept)
        judged = {pair: judgement.behaviour for pair, judgement in zip(different, judgements, strict=True)}
        return [judged[pair] for pair in answered]


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

"""Answers under interventions and what the model did in them, told by the detector or judge of the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from refusal.config import Config
from refusal.labels import Behaviour
from refusal.labels.telling import tell
from refusal.steering.run import Response, Runs, Vary, respond


@dataclass(frozen=True)
class Asked:
    """Prompts to be answered."""

    texts: Sequence[str]
    token_ids: Sequence[Sequence[int]]
    """In their chat frame, with what every answer begins with."""
    prefix: Sequence[int] = ()
    """What every answer begins with; it is put before the answers."""


@dataclass(frozen=True)
class Judged:
    """One answer."""

    response: Response
    text: str
    behaviour: Behaviour
    """What the model did."""


class Answerer:
    """Makes and judges answers.

    Args:
        runs: The model and how it is run.
        config: Longest answer, and who judges.
        kept: File in which a judge's verdicts are kept as they come.
    """

    def __init__(self, runs: Runs, config: Config, kept: Path) -> None:
        self.runs = runs
        self._config = config
        self._kept = kept

    def answer(self, asked: Asked, n_variants: int, vary: Vary) -> list[list[Judged]]:
        """Return judged answers, `[variant][prompt]`, to prompts under every variant of an intervention.

        Raises:
            InputError: The configured judge is no model that can judge.
        """
        found = respond(self.runs, asked.token_ids, n_variants, vary, self._config.max_new_tokens)
        texts = [[response.text(self.runs.model, asked.prefix) for response in of_variant] for of_variant in found]
        pairs = [pair for of_variant in texts for pair in zip(asked.texts, of_variant, strict=True)]
        behaviours = iter(self._behaviours(pairs))
        return [
            [Judged(response, text, next(behaviours)) for response, text in zip(*of_variant, strict=True)]
            for of_variant in zip(found, texts, strict=True)
        ]

    def behaviours(self, asked: Asked, n_variants: int, vary: Vary) -> list[list[Behaviour]]:
        """Return only what the model did, `[variant][prompt]`."""
        return [[judged.behaviour for judged in of_variant] for of_variant in self.answer(asked, n_variants, vary)]

    def _behaviours(self, answered: Sequence[tuple[str, str]]) -> list[Behaviour]:
        """Return what the model did in each answer; equal answers to equal prompts are judged once."""
        different = list(dict.fromkeys(answered))
        judgements = tell(different, self._config, self._kept)
        judged = {pair: judgement.behaviour for pair, judgement in zip(different, judgements, strict=True)}
        return [judged[pair] for pair in answered]

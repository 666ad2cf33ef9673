"""What the model did: refused, complied, something between, or cannot be told. Judged from the response alone.

This package does not know prompts or the data set: `dataset_label` and behaviour are different things.

| module | knows |
|---|---|
| `behaviour` | the four behaviours, and what a judgement is |
| `patterns`, `reading` | what the sentences of an English response do |
| `rules` | the rule set |
| `learned`, `training` | the default: the rules' features, weighed by what people said of real responses |
| `strings`, `first_token` | detectors of earlier studies, for comparison |
| `judge` | a Hugging Face model as the judge |
"""

from __future__ import annotations

from collections.abc import Sequence

from refusal.labels.behaviour import Behaviour, Detector, Judgement
from refusal.labels.learned import judge_learned
from refusal.labels.rules import judge_by_rules
from refusal.labels.strings import STRING_DETECTORS

__all__ = ["DEFAULT", "DETECTORS", "VERSION", "Behaviour", "Detector", "Judgement", "classify", "classify_detailed"]

VERSION = 3
"""Raised when a detector says other things of the same responses: labels made by another version are made anew."""

DEFAULT = "learned"
"""The detector that is used unless another is asked for."""

DETECTORS: dict[str, Detector] = {DEFAULT: judge_learned, "rules": judge_by_rules, **STRING_DETECTORS}
"""Named ways of telling from responses what the model did. (`first_token` needs scores, and a judge a model.)"""


def classify_detailed(responses: Sequence[str], detector: str = DEFAULT) -> list[Judgement]:
    """Return what the model did, how sure that is and what decided, per response.

    Args:
        responses: As the model gave them.
        detector: A name in `DETECTORS`.
    """
    return DETECTORS[detector](responses)


def classify(responses: list[str]) -> list[str]:
    """Return `refused`, `partly_refused`, `complied` or `cannot_tell` per response.

    >>> classify(["I'm sorry, but I can't help with that.", "Sure, here is how to prune roses: wait for spring.", ""])
    ['refused', 'complied', 'cannot_tell']
    """
    return [judgement.behaviour.value for judgement in classify_detailed(responses)]

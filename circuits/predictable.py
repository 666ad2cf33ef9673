"""Whether anything in the prompts predicts what the model did: a control against verdicts on noise.

A model whose refusals follow no rule (chance, or memory of single prompts) still commits to them through one output
direction, and so would look monolithic. But then the words of a prompt say nothing about the answer to the next. A
linear read-out of the words, within a category, judged on prompts it was not fitted to, tells the two apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from sklearn.feature_extraction.text import CountVectorizer

from refusal.stats import cross_validated_auc

MIN_TEXT_AUC = 0.65
"""Upper end of the interval of the text AUC below which refusals follow nothing in the prompts. Planted models whose
refusals are memorised at random give .51, those with a mechanism .88 to .92 with 100 prompts a category."""


@dataclass(frozen=True)
class TextAUC:
    """Cross-validated AUC of refused against complied from the words of the prompts, mean over categories."""

    mean: float
    low: float
    high: float
    """Mean ± 1.96 standard errors over categories."""

    @property
    def is_noise(self) -> bool:
        """Whether refusals follow nothing in the prompts, as far as words show."""
        return self.high < MIN_TEXT_AUC


def text_auc(
    texts: Sequence[str], category: Int[np.ndarray, " prompt"], is_refused: Bool[np.ndarray, " prompt"], seed: int
) -> TextAUC | None:
    """Return how well words predict refusal within a category; None with fewer than two measurable categories."""
    values = []
    for index in np.unique(category):
        rows = np.flatnonzero(category == index)
        words = CountVectorizer(token_pattern=r"(?u)\w+", binary=True)
        try:
            counts = words.fit_transform([texts[int(row)] for row in rows]).toarray().astype(float)
        except ValueError:  # no words at all
            continue
        found = cross_validated_auc(counts, is_refused[rows], np.random.default_rng([seed, 6, int(index)])).value
        if found is not None:
            values.append(found)
    if len(values) < 2:
        return None
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))
    return TextAUC(mean, max(0.0, mean - 1.96 * error), min(1.0, mean + 1.96 * error))

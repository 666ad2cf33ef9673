"""How prompts are put into batches: each within a budget of padded tokens, which is halved when memory runs out.

A batch costs its prompts times the longest of them, so each batch is cut by its own padded size, not by the longest
prompt of all. Which prompts share a batch changes nothing but time and memory. How big the budget is where nothing is
configured says `refusal.batch_memory`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from refusal.errors import InputError
from refusal.resources import is_out_of_memory

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """How much a batch may hold."""

    prompts: int
    """Prompts, at most."""
    tokens: int | None = None
    """Padded tokens, at most; None: no limit. A single prompt may exceed it."""
    tokens_per_answer: int = 0
    """What the answer of a prompt takes besides, counted as tokens of the prompt."""
    padding: int | None = None
    """Tokens of padding, at most; None: no limit. More of it costs more than another batch."""

    def holds(self, n_prompts: int, longest: int, needed: int) -> bool:
        """Return whether a batch is within the budget.

        Args:
            n_prompts: Its prompts.
            longest: Tokens of the longest.
            needed: Tokens of all.
        """
        fits = self.tokens is None or self.size(n_prompts, longest) <= self.tokens
        is_dense = self.padding is None or n_prompts * longest - needed <= self.padding
        return n_prompts <= self.prompts and fits and is_dense

    def size(self, n_prompts: int, longest: int) -> int:
        """Return what counts of a batch, in tokens: prompts x (the longest of them + an answer)."""
        return n_prompts * (longest + self.tokens_per_answer)


@dataclass(frozen=True)
class TokenCount:
    """Tokens of prompts that went through a model."""

    needed: int = 0
    """Without padding."""
    computed: int = 0
    """With it."""

    def __add__(self, other: TokenCount) -> TokenCount:
        """Return both together."""
        return TokenCount(self.needed + other.needed, self.computed + other.computed)

    def __sub__(self, other: TokenCount) -> TokenCount:
        """Return this without the other."""
        return TokenCount(self.needed - other.needed, self.computed - other.computed)

    @property
    def ratio(self) -> float:
        """Tokens computed over tokens needed: 1.0 without padding."""
        return self.computed / self.needed if self.needed else 1.0


def next_batch(lengths: Sequence[int], first: int, budget: Budget) -> range:
    """Return the longest run of prompts from `first` on that is within the budget; at least one prompt.

    Args:
        lengths: Tokens of each prompt; in order of length little of a batch is padding.
        first: Number of the first prompt.
        budget: What a batch may hold.
    """
    longest = needed = lengths[first]
    end = first + 1
    while end < len(lengths):
        longest, needed = max(longest, lengths[end]), needed + lengths[end]
        if not budget.holds(end + 1 - first, longest, needed):
            break
        end += 1
    return range(first, end)


Result = TypeVar("Result")


class Batcher:
    """Runs prompts in batches; what memory has taught it holds for all that it runs afterwards.

    Args:
        budget: What a batch may hold, to begin with.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.count = TokenCount()
        """Tokens of all batches that succeeded."""

    def run(self, lengths: Sequence[int], run: Callable[[range], Result]) -> list[Result]:
        """Return the results of `run` over consecutive ranges of prompts.

        When memory runs out, the budget becomes half of what did not fit, and the same prompts run again; smaller
        batches give the same results.

        Raises:
            InputError: Memory runs out with a single prompt.
        """
        results: list[Result] = []
        first = 0
        while first < len(lengths):
            rows = next_batch(lengths, first, self.budget)
            longest = max(lengths[row] for row in rows)
            try:
                results.append(run(rows))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(rows) == 1:
                    raise InputError(
                        f"batch_size: memory ran out with a single prompt, of {longest} tokens; use dtype: bfloat16, a "
                        "smaller model or a larger device. What was captured before stays."
                    ) from error
            else:
                self.count += TokenCount(sum(lengths[row] for row in rows), len(rows) * longest)
                first = rows.stop
                continue
            # after the handler, which keeps the failed batch's tensors alive through its traceback
            self._halve(len(rows), longest)
        return results

    def _halve(self, n_prompts: int, longest: int) -> None:
        """Lower the budget to half of a batch that did not fit."""
        tokens = self.budget.size(n_prompts, longest) // 2
        self.budget = replace(self.budget, tokens=tokens)
        log.warning("memory ran out with %d prompts of up to %d tokens: batches halved", n_prompts, longest)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

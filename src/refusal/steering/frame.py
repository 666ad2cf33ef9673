"""Which kind of position each column of a pass is, and which kinds an intervention acts on.

A prompt in its chat frame is text (what is not among the last n tokens), then the last n tokens (the end of the chat
template, whose last is the readout position), then the answer. Kinds are numbered 0 (text), 1 to n (the last n tokens
in order), n + 1 (answer). While a model answers, the pass over the prompt has several columns and each decode step has
one; where prompt and answer run in one pass, `Frame.of_texts` says where the answers begin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Region(StrEnum):
    """Where an intervention acts."""

    ALL = "all"
    """At every position of the prompt and of the answer, as published."""
    ANSWER = "answer"
    """From the prompt's last token on: there, and at every token of the answer."""
    READOUT = "readout"
    """At the prompt's last token only, where the first token of the answer is decided."""


@dataclass(frozen=True)
class Frame:
    """The kinds of positions of the passes of a run."""

    n_template: int = 1
    """How many last tokens of the prompt have a kind of their own, at least 1."""
    given: Int[Tensor, "batch pos"] | None = None
    """Kinds of a pass that holds prompts and answers together; None: the pass is a prompt or a decode step."""

    @property
    def readout(self) -> int:
        """The kind of the prompt's last token."""
        return self.n_template

    @property
    def answer(self) -> int:
        """The kind of a token of the answer."""
        return self.n_template + 1

    def kinds(self, value: Float[Tensor, "batch pos d_model"]) -> Int[Tensor, "batch_or_1 pos"]:
        """Return the kind of each column of a left-padded pass; padding counts as text."""
        if self.given is not None:
            return self.given.to(value.device)
        n_columns = value.shape[1]
        if n_columns == 1:
            return torch.full((1, 1), self.answer, device=value.device)
        return torch.arange(self.n_template - n_columns + 1, self.n_template + 1, device=value.device).clamp_min(0)[
            None
        ]

    def acts_on(self, region: Region, kinds: Int[Tensor, "batch_or_1 pos"]) -> Bool[Tensor, "batch_or_1 pos"] | None:
        """Return where a region is; None: everywhere."""
        if region is Region.ALL:
            return None
        return kinds == self.readout if region is Region.READOUT else kinds >= self.readout

    @classmethod
    def of_texts(cls, n_template: int, prompt_lengths: Sequence[int], lengths: Sequence[int]) -> Frame:
        """Return the frame of left-padded prompts with their answers.

        Args:
            n_template: As above.
            prompt_lengths: Tokens of each prompt.
            lengths: Tokens of each prompt and its answer together.

        >>> Frame.of_texts(1, [2], [4]).given.tolist()
        [[0, 1, 2, 2]]
        """
        starts = max(lengths) - torch.tensor(list(lengths))[:, None]
        columns = torch.arange(max(lengths))[None]
        offset = columns - (starts + torch.tensor(list(prompt_lengths))[:, None] - 1)
        kinds = (offset + n_template).clamp(0, n_template + 1)
        # a text without a prompt has no readout position: the padding before it is not one
        return cls(n_template, torch.where(columns < starts, 0, kinds))

"""Refusals among generated answers, while sites of the model are changed.

Two kinds of change, on the prompt and, where it is asked for, on every token of the answer too:

- `replace`: some entries of sites (heads, or whole sites) take given values: those of the other prompt of the pair, or
  means. On the prompt position by position; on answer tokens the mean of the readout position stands in, while
  counterfactual values, which exist for the prompt alone, leave answer tokens as they are;
- `from_readout`: a function of the value at the readout position and at every answer token.

The values come from the readout position, where the answer begins. Later tokens of an answer have others, so holding
theirs as well can garble an answer that was decided already; what is garbled is counted.

What the model did is told by the configured detector or judge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refusal.batch_memory import budget_for
from refusal.batches import Batcher
from refusal.capture import capture
from refusal.config import Config
from refusal.interventions import Transform, edit
from refusal.labels.behaviour import Behaviour
from refusal.labels.telling import tell
from refusal.models import ChatModel
from refusal.sites import Site
from refusal.stats import Estimate, wilson_interval

Rows = Sequence[int]
Change = Callable[[Rows], AbstractContextManager[None]]
"""Gives what is changed while some of the prompts (their numbers) are answered."""


@dataclass(frozen=True)
class Asked:
    """Prompts to be answered."""

    texts: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]
    """In their chat frame, with what every answer begins with."""
    prefix: tuple[int, ...] = ()
    """What every answer begins with; it is put before the answers."""


@dataclass(frozen=True)
class Refusals:
    """How many of some prompts were refused."""

    rate: Estimate
    """Share refused, with its Wilson interval; where each prompt was answered several times, that of single answers."""
    n_refused: int
    n_unclear: int
    """Answers that neither refuse nor comply as far as can be told: a sign of damage."""

    @property
    def n(self) -> int:
        """Answers."""
        return self.rate.n

    @classmethod
    def of(cls, behaviours: Sequence[Behaviour], n_sets: int = 1) -> Refusals:
        """Return the counts of some answers.

        Args:
            behaviours: What the model did.
            n_sets: How often each prompt was answered, under different changes. Answers to the same prompt are not
                independent, so more sets do not make the interval narrower.
        """
        n_refused = sum(each is Behaviour.REFUSED for each in behaviours)
        n_unclear = sum(each is Behaviour.CANNOT_TELL for each in behaviours)
        n_prompts = len(behaviours) // max(1, n_sets)
        return cls(wilson_interval(n_refused, len(behaviours), n_units=n_prompts), n_refused, n_unclear)


class Answering:
    """Answers prompts with a model and tells what it did.

    Args:
        model: The model.
        config: Longest answer, batch size, and who judges.
        kept: File in which a judge's verdicts are kept as they come.
    """

    def __init__(self, model: ChatModel, config: Config, kept: Path) -> None:
        self.model = model
        self.on_answer = config.patching.on_answer
        """Whether changes hold on the tokens of the answer too."""
        self._config = config
        self._kept = kept
        self._batcher = Batcher(budget_for(model, config.batch_size, [], config.max_new_tokens))

    def behaviours(self, asked: Asked, change: Change = lambda rows: nullcontext()) -> list[Behaviour]:
        """Return what the model did on each prompt under a change."""

        def run(rows: range) -> list[str]:
            """Return the answers to some prompts."""
            batch = [asked.token_ids[row] for row in rows]
            with change(rows):
                # changes may differ by row: no answer leaves the batch while others go on
                found = capture(self.model, batch, [], self._config.max_new_tokens, leave_at=0.0)
            return [self._text([*asked.prefix, *answer]) for answer in found.answers]

        batches = self._batcher.run([len(ids) for ids in asked.token_ids], run)
        answers = [answer for batch in batches for answer in batch]
        judged = tell(list(zip(asked.texts, answers, strict=True)), self._config, self._kept)
        return [judgement.behaviour for judgement in judged]

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.model.tokenizer.decode(tokens, skip_special_tokens=True))


@dataclass(frozen=True)
class Replacement:
    """What a site's entries become for some prompts; columns are counted from the end."""

    values: Float[Tensor, "prompt pos width"]
    mask: Bool[Tensor, "prompt pos"]
    """Which positions are replaced."""
    later: Float[Tensor, "prompt width"] | None = None
    """What entries become on answer tokens; None: they stay."""


@contextmanager
def replace(
    model: ChatModel, replacements: Mapping[Site, Replacement], entries: Mapping[Site, Sequence[slice]]
) -> Iterator[None]:
    """Replace entries of sites until the end of the `with`, one row a prompt."""

    def transform(put: Replacement, chosen: Sequence[slice]) -> Transform:
        """Return the change of one site."""

        def change(acts: Tensor) -> Tensor:
            """Replace entries on the prompt (several positions) or on one answer token."""
            changed = acts.clone()
            n = acts.shape[1]
            for part in chosen:
                if n > 1:
                    values, mask = put.values[:, -n:, part].to(acts), put.mask[:, -n:, None].to(acts.device)
                    changed[..., part] = torch.where(mask, values, changed[..., part])
                elif put.later is not None:
                    changed[..., part] = put.later[:, None, part].to(acts)
            return changed

        return change

    with edit(model, {site: transform(replacements[site], entries[site]) for site in entries}):
        yield


@contextmanager
def from_readout(model: ChatModel, changes: Mapping[Site, Transform], *, on_answer: bool) -> Iterator[None]:
    """Change sites at the readout position, and at every answer token where asked for, until the end of the `with`."""

    def last_only(change: Transform) -> Transform:
        """Return the change, applied to the last position."""

        def use(acts: Tensor) -> Tensor:
            """Change the last position of the prompt, or the one answer token."""
            if acts.shape[1] == 1 and not on_answer:
                return acts
            return torch.cat([acts[:, :-1], change(acts[:, -1:]).to(acts)], dim=1)

        return use

    with edit(model, {site: last_only(change) for site, change in changes.items()}):
        yield

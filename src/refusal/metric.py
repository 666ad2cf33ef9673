"""The refusal metric m(x): how much the model leans to refusing at its first answer token, in logits.

1. `learn_openers` takes the first tokens of the model's own greedy answers and what the model did, and returns the
   tokens that begin refusals and those that begin compliance. A token common to both goes to the side where it is at
   least four times likelier (rates, not counts), else to neither.
2. `RefusalMetric` applied to logits gives m(x) = logsumexp(refusal openers) - logsumexp(compliance openers).
3. `score_top_logits` gives the same from the few largest logits that a run stores.

This module does not know models or tokenizers: tokens are ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.labels import Behaviour
from refusal.store import TopLogits

MIN_RATE_RATIO = 4.0
"""A token belongs to a side when it begins that side's answers at least this many times as often."""
MIN_SHARE = 0.02
"""A token must begin at least this share of a side's answers to be one of its openers."""
MIN_COUNT = 2
"""A token must begin at least this many of a side's answers: one is chance."""


@dataclass(frozen=True)
class RefusalMetric:
    """m(x), the log-odds of the refusal openers against the compliance openers. Positive: leans to refusing.

    >>> metric = RefusalMetric(refusal_openers=(0, 1), compliance_openers=(2,))
    >>> round(metric(torch.tensor([[0.0, 0.0, 0.0, 9.0]])).item(), 4)  # log 2 - log 1
    0.6931
    """

    refusal_openers: tuple[int, ...]
    """Token ids that begin refusals; at least one."""
    compliance_openers: tuple[int, ...]
    """Token ids that begin compliance; at least one, none of the other side."""
    ambiguous: tuple[int, ...] = field(default=(), compare=False)
    """Token ids that begin both kinds of answers too evenly to be used."""

    def __post_init__(self) -> None:
        if not self.refusal_openers or not self.compliance_openers:
            raise ValueError("a metric needs at least one opener on each side")
        common = set(self.refusal_openers) & set(self.compliance_openers)
        if common:
            raise ValueError(f"tokens {sorted(common)} are openers of both sides; a token may open one side")

    def __call__(self, logits: Float[Tensor, "*rest vocab"]) -> Float[Tensor, "*rest"]:
        """Return m(x) in logits, differentiable; any constant added to all logits cancels.

        Args:
            logits: Logits at the readout position. They are read in their dtype; give float32 or better.
        """
        return _logsumexp(logits, self.refusal_openers) - _logsumexp(logits, self.compliance_openers)

    def lead(self, logits: Float[Tensor, "*rest vocab"]) -> Float[Tensor, "*rest"]:
        """Return by how much the refusal openers together lead over the best token of any other kind, in logits.

        m compares openers alone. Where a model would begin otherwise nearly as often, m can be large although the
        refusal is a toss-up.

        >>> metric = RefusalMetric(refusal_openers=(0,), compliance_openers=(2,))
        >>> metric.lead(torch.tensor([[3.0, 2.5, -4.0]])).item()
        0.5
        """
        others = logits.index_fill(-1, torch.tensor(self.refusal_openers, device=logits.device), float("-inf"))
        return _logsumexp(logits, self.refusal_openers) - others.amax(-1)


@dataclass(frozen=True)
class OpenersUnavailable:
    """Why the metric cannot be learned from these answers. An outcome, not an error: the verdict reports it."""

    reason: str
    """One sentence that can be quoted."""
    refusal_openers: tuple[int, ...] = ()
    """What was found on this side, possibly nothing."""
    compliance_openers: tuple[int, ...] = ()
    """What was found on this side, possibly nothing."""
    ambiguous: tuple[int, ...] = ()
    """Token ids that begin both kinds of answers."""


def _logsumexp(logits: Float[Tensor, "*rest vocab"], openers: tuple[int, ...]) -> Float[Tensor, "*rest"]:
    return torch.logsumexp(logits[..., torch.tensor(openers, device=logits.device)], dim=-1)


def learn_openers(
    first_token_ids: Sequence[int],
    behaviours: Sequence[Behaviour | str],
    *,
    min_share: float = MIN_SHARE,
    min_ratio: float = MIN_RATE_RATIO,
) -> RefusalMetric | OpenersUnavailable:
    """Return the metric whose openers these answers teach, or why they teach none.

    With r and c the shares of refused and of complied answers that begin with a token, it is a refusal opener when r is
    at least `min_share` (and two answers) and r >= `min_ratio` * c; a compliance opener the other way round; ambiguous
    when it is common enough on a side but neither holds. Shares, so that a model that seldom refuses loses no opener.
    Partly refused and unjudged answers are left out. Openers are ordered by share, then id. Source: METHOD section 3.

    Args:
        first_token_ids: First token of the greedy answer, one per prompt.
        behaviours: What the model did, in the same order.
        min_share: In (0, 1].
        min_ratio: Greater than 1.

    >>> learn_openers([7, 7, 7, 8, 8, 9], ["refused"] * 3 + ["complied"] * 3)
    RefusalMetric(refusal_openers=(7,), compliance_openers=(8,), ambiguous=())
    """
    pairs = list(zip(first_token_ids, map(Behaviour, behaviours), strict=True))
    refused = Counter(token for token, behaviour in pairs if behaviour is Behaviour.REFUSED)
    complied = Counter(token for token, behaviour in pairs if behaviour is Behaviour.COMPLIED)
    if not refused.total() or not complied.total():
        return OpenersUnavailable(_one_sided(refused.total(), complied.total(), len(pairs)))
    common_refused, common_complied = (_common(counts, min_share) for counts in (refused, complied))
    rate_refused, rate_complied = (_rates(counts) for counts in (refused, complied))
    refusal = [t for t in common_refused if rate_refused[t] >= min_ratio * rate_complied.get(t, 0.0)]
    compliance = [t for t in common_complied if rate_complied[t] >= min_ratio * rate_refused.get(t, 0.0)]
    ambiguous = tuple(sorted({*common_refused, *common_complied} - {*refusal, *compliance}))
    if refusal and compliance:
        return RefusalMetric(tuple(refusal), tuple(compliance), ambiguous)
    reason = _side_without_openers("refused" if not refusal else "complied", refused, complied, ambiguous)
    return OpenersUnavailable(reason, tuple(refusal), tuple(compliance), ambiguous)


def _rates(counts: Counter[int]) -> dict[int, float]:
    return {token: count / counts.total() for token, count in counts.items()}


def _common(counts: Counter[int], min_share: float) -> list[int]:
    least = max(MIN_COUNT, min_share * counts.total())
    return sorted((token for token, n in counts.items() if n >= least), key=lambda token: (-counts[token], token))


def _one_sided(n_refused: int, n_complied: int, n: int) -> str:
    if not n_refused and not n_complied:
        return f"none of the {n} answers could be judged as refused or complied"
    what, other, count = ("complied", "refused", n_complied) if n_complied else ("refused", "complied", n_refused)
    return f"the model {what} in {count} of {n} answers and never {other}, so nothing tells the two apart"


def _side_without_openers(side: str, refused: Counter[int], complied: Counter[int], ambiguous: tuple[int, ...]) -> str:
    numbers = f"{refused.total()} refused and {complied.total()} complied answers"
    if ambiguous:
        tokens = ", ".join(str(token) for token in ambiguous[:5])
        return f"no first token marks {side} answers: both kinds begin with the same tokens (ids {tokens}; {numbers})"
    return f"no first token begins two or more of the {side} answers ({numbers}), so none can be learned"


def score_top_logits(metric: RefusalMetric, top: TopLogits) -> Float[Tensor, " prompt"]:
    """Return m(x) per prompt from the stored largest logits, in logits.

    An opener that is not among the stored logits is at most the smallest of them. When a side has none stored, that
    smallest logit stands for the side's log-sum-exp, so m is pulled towards 0; when a side has some, the missing ones
    are left out, which costs less than log(1 + missing / found) logits.
    """
    refusal = _stored_logsumexp(top, metric.refusal_openers)
    compliance = _stored_logsumexp(top, metric.compliance_openers)
    return refusal - compliance


def _stored_logsumexp(top: TopLogits, openers: tuple[int, ...]) -> Float[Tensor, " prompt"]:
    is_opener = torch.isin(top.ids, torch.tensor(openers, device=top.ids.device))
    found = torch.where(is_opener, top.logits, torch.full_like(top.logits, -torch.inf)).logsumexp(dim=-1)
    return torch.where(is_opener.any(dim=-1), found, top.logits.amin(dim=-1))

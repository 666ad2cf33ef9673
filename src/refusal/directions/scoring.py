"""Score candidate directions on validation prompts: what happens when they are taken away, and when they are added.

    bypass   mean m of refused prompts with the direction ablated at every place of the stream
    induce   mean m of complied prompts with the difference in means added once after its block
    KL       sum p (log p - log q) over the first token on complied prompts: p as they are, q under ablation

Each also in the published form, log P - log(1 - P) with P the probability of the refusal openers; both ends are kept
off 0 by 1e-8, as published. The published KL adds 1e-6 to each probability, which ours, from logits, does not need.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal.directions.candidates import Direction, MeanDiffs
from refusal.directions.schemas import AblateTo, Candidate
from refusal.metric import RefusalMetric
from refusal.schemas import Interval
from refusal.stats import bootstrap_mean
from refusal.steering.directional import Ablation, Addition, Intervention, Reference
from refusal.steering.frame import Region
from refusal.steering.run import Runs, measure, unchanged

DRAWS = 1000
"""Bootstrap draws of a score's interval."""
_EPSILON = 1e-8
_M, _PUBLISHED, _KL = range(3)


@dataclass(frozen=True)
class Validation:
    """Prompts on which candidates are scored, as `ChatModel.tokenize` gives them."""

    refused: Sequence[Sequence[int]]
    complied: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Baseline:
    """Mean m without intervention."""

    refused: float
    complied: float


def published_score(logits: Float[Tensor, "row vocab"], refusal_openers: Sequence[int]) -> Float[Tensor, " row"]:
    """Return log(P + 1e-8) - log(1 - P + 1e-8), P: probability of the refusal openers, in float64 on the CPU."""
    openers = torch.tensor(list(refusal_openers), device=logits.device)
    total = logits.logsumexp(-1)
    # from the logits of the others: 1 - P would lose all digits where P is near 1
    others = logits.index_fill(-1, openers, float("-inf")).logsumexp(-1)
    of_openers, of_others = ((part - total).cpu().double().exp() for part in (logits[:, openers].logsumexp(-1), others))
    return (of_openers + _EPSILON).log() - (of_others + _EPSILON).log()


class Scorer:
    """Scores candidates of one model.

    Args:
        runs: The model and how it is run.
        metric: m.
        validation: The prompts.
        seed: Decides the draws of the intervals.
    """

    def __init__(self, runs: Runs, metric: RefusalMetric, validation: Validation, seed: int = 0) -> None:
        self.runs = runs
        self.seed = seed
        self.metric = metric
        self.validation = validation
        self._plain = torch.zeros(0)
        refused = measure(runs, validation.refused, 1, unchanged, self._score)
        complied = measure(runs, validation.complied, 1, unchanged, self._remember)
        self.baseline = Baseline(*(float(found[0, :, _M].mean()) for found in (refused, complied)))

    def score(self, mean_diffs: MeanDiffs, references: Mapping[AblateTo, Reference | None]) -> list[Candidate]:
        """Return the scores of every position and layer, under every kind of ablation.

        Args:
            mean_diffs: The candidates.
            references: What ablation leaves, by name (`zero`, `complied`); None: nothing.
        """
        directions = [
            mean_diffs.direction(position, layer)
            for position in mean_diffs.positions
            for layer in range(mean_diffs.n_layers)
        ]
        induced = self._induce(directions)
        found = []
        for name, reference in references.items():
            bypassed, harmless = (
                self._ablate(directions, reference, prompts)
                for prompts in (self.validation.refused, self.validation.complied)
            )
            for index, direction in enumerate(directions):
                found.append(
                    Candidate(
                        position=direction.position,
                        layer=direction.layer,
                        published_layer=direction.layer + 1,
                        ablate_to=name,
                        norm=direction.norm,
                        bypass=_number(bypassed[index, :, _M]),
                        bypass_ci=self._interval(bypassed[index, :, _M]),
                        bypass_published=_number(bypassed[index, :, _PUBLISHED]),
                        induce=_number(induced[index, :, _M]),
                        induce_ci=self._interval(induced[index, :, _M]),
                        induce_published=_number(induced[index, :, _PUBLISHED]),
                        kl=_number(harmless[index, :, _KL]),
                        kl_ci=self._interval(harmless[index, :, _KL]),
                        left_out=(),
                    )
                )
        return found

    def _ablate(
        self, directions: list[Direction], reference: Reference | None, prompts: Sequence[Sequence[int]]
    ) -> Float[Tensor, "direction prompt score"]:
        units = torch.stack([direction.unit for direction in directions])

        def vary(variants: Int[Tensor, " row"], _: Int[Tensor, " row"]) -> list[Intervention]:
            """Ablate each row's own direction."""
            return [Ablation(units[variants][:, None], reference)]

        score = self._score if prompts is self.validation.refused else self._with_kl
        return measure(self.runs, prompts, len(directions), vary, score)

    def _induce(self, directions: list[Direction]) -> Float[Tensor, "direction prompt score"]:
        """Add each direction's difference in means after its block; rows of a batch share the block."""
        parts: dict[int, Tensor] = {}
        for layer in sorted({direction.layer for direction in directions}):
            rows = [index for index, direction in enumerate(directions) if direction.layer == layer]
            vectors = torch.stack([directions[index].raw for index in rows])

            def vary(
                variants: Int[Tensor, " row"], _: Int[Tensor, " row"], layer: int = layer, vectors: Tensor = vectors
            ) -> list[Intervention]:
                """Add each row's own vector."""
                return [Addition(vectors[variants][:, None], layer, region=Region.ALL)]

            found = measure(self.runs, self.validation.complied, len(rows), vary, self._score)
            parts |= dict(zip(rows, found, strict=True))
        return torch.stack([parts[index] for index in range(len(directions))])

    def _interval(self, values: Float[Tensor, " prompt"]) -> Interval:
        found = bootstrap_mean(values.numpy(), np.random.default_rng([self.seed, 5]), n_draws=DRAWS)
        return found.low, found.high

    def _score(self, logits: Tensor, prompts: Tensor) -> Float[Tensor, "row score"]:
        published = published_score(logits, self.metric.refusal_openers)
        return torch.stack([self.metric(logits).cpu().double(), published], dim=-1)

    def _with_kl(self, logits: Tensor, prompts: Tensor) -> Float[Tensor, "row score"]:
        plain = self._plain[prompts.to(self._plain.device)]
        divergence = (plain.exp() * (plain - logits.log_softmax(-1))).sum(-1).cpu().double()
        return torch.cat([self._score(logits, prompts), divergence[:, None]], dim=-1)

    def _remember(self, logits: Tensor, prompts: Tensor) -> Float[Tensor, "row score"]:
        """Keep the log-probabilities of complied prompts as they are."""
        if not len(self._plain):
            self._plain = logits.new_zeros(len(self.validation.complied), logits.shape[-1])
        self._plain[prompts.to(logits.device)] = logits.log_softmax(-1)
        return self._score(logits, prompts)


def _number(values: Float[Tensor, " prompt"]) -> float | None:
    """Return the mean; None where it is not a number."""
    mean = float(values.mean())
    return mean if math.isfinite(mean) else None

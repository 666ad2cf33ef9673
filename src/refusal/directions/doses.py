"""Dose-response: is the direction sufficient for refusal, is it necessary, and does any direction of its length do?

    addition      complied prompts, c times the difference in means added (sufficiency)
    subtraction   refused prompts, c times subtracted
    ablation      refused prompts, a share of the projection taken (necessity)

At every dose the share of answers refused and mean m, and the same with random directions of equal norm. Doses and
directions are variants of the same prompts, so that their answers are made together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal.directions.acting import Acting
from refusal.directions.judging import MaterialAnswerer
from refusal.directions.schemas import DoseCurve, DosePoint
from refusal.directions.splits import Part
from refusal.labels import Behaviour
from refusal.measures import rate
from refusal.schemas import Measure
from refusal.stats import bootstrap_mean
from refusal.steering.directional import Ablation, Addition, Intervention
from refusal.steering.run import measure

CurveName = Literal["addition", "subtraction", "ablation"]
CURVES: tuple[CurveName, ...] = ("addition", "subtraction", "ablation")
AMOUNTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the projection that an ablation takes at each place; along the depth they add up."""


@dataclass(frozen=True)
class Varied:
    """One dose of one vector for each variant; variants go by dose, then by vector."""

    acting: Acting
    vectors: Float[Tensor, "vector d_model"]
    """The direction's raw vector, then random ones of its norm."""
    doses: Sequence[float]
    is_ablation: bool

    @property
    def n_variants(self) -> int:
        """Doses times vectors."""
        return len(self.doses) * len(self.vectors)

    def __call__(self, variants: Int[Tensor, " row"], prompts: Int[Tensor, " row"]) -> list[Intervention]:
        """Return the interventions of a batch: each row its own vector in its own dose."""
        acting, n = self.acting, len(self.vectors)
        vectors = self.vectors[variants % n][:, None]
        dose = torch.tensor(list(self.doses), dtype=torch.float64)[variants // n][:, None, None]
        if not self.is_ablation:
            return [Addition(vectors, acting.direction.layer, dose, acting.region)]
        units = vectors / vectors.norm(dim=-1, keepdim=True)
        return [Ablation(units, acting.references[acting.ablate_to], dose, acting.region)]


def dose_curve(
    name: CurveName, answerer: MaterialAnswerer, acting: Acting, random: Float[Tensor, "draw d_model"]
) -> DoseCurve:
    """Return one dose-response curve on test prompts.

    Args:
        name: Which.
        answerer: Makes and judges answers; its material has the prompts, doses and the seed.
        acting: The direction and where it acts.
        random: Random directions of its norm.
    """
    material = answerer.material
    refused = name != "addition"
    rows = material.rows(Part.TEST, refused=refused, at_most=material.settings.test_prompts)
    sign = -1.0 if name == "subtraction" else 1.0
    doses = AMOUNTS if name == "ablation" else tuple(sign * dose for dose in (0.0, *material.settings.coefficients))
    varied = Varied(acting, torch.cat([acting.direction.raw[None], random]), doses, name == "ablation")
    answers = answerer.answer(material.asked(rows), varied.n_variants, varied)
    metric = measure(
        material.runs,
        material.tokens(rows),
        varied.n_variants,
        varied,
        lambda logits, _: material.metric(logits)[:, None],
    )[..., 0].numpy()
    points = []
    for index, dose in enumerate(doses):
        variants = range(index * len(varied.vectors), (index + 1) * len(varied.vectors))
        flags = [[judged.behaviour is Behaviour.REFUSED for judged in answers[variant]] for variant in variants]
        generator = np.random.default_rng([material.config.seed, index])
        mean = bootstrap_mean(metric[variants.start], generator, n_draws=material.config.analysis.bootstrap)
        points.append(
            DosePoint(
                dose=dose,
                refused=rate(flags[0]),
                metric=Measure.of(mean),
                random_refused=tuple(sum(each) / len(each) for each in flags[1:]),
                random_metric=tuple(float(metric[variant].mean()) for variant in variants[1:]),
            )
        )
    return DoseCurve(intervention=name, prompts="refused" if refused else "complied", points=tuple(points))

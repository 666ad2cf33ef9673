"""The selected direction, ready to act: which interventions its evaluation applies, and where they act.

Where: the published interventions act at every position. Some models' answers then come apart, so that nothing can be
told from them; then acting at the prompt's last token, or from there on, shows what the direction does. `choose_region`
tries all three on validation prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from refusal.directions.candidates import Direction
from refusal.directions.schemas import AblateTo, RegionTrial
from refusal.steering.directional import Ablation, Addition, Intervention, Reference
from refusal.steering.frame import Region


@dataclass(frozen=True)
class Acting:
    """A direction and how it is applied."""

    direction: Direction
    ablate_to: AblateTo
    references: Mapping[AblateTo, Reference | None]
    region: Region = Region.ALL
    coefficient: float = 1.0
    """How many times the difference in means is added in the evaluation."""

    def ablation(self, amount: float = 1.0) -> Intervention:
        """Return the ablation as chosen on the validation prompts."""
        return Ablation(self.direction.unit[None], self.references[self.ablate_to], amount, self.region)

    def published_ablation(self) -> Intervention:
        """Return the ablation as published: everywhere, to zero."""
        return Ablation(self.direction.unit[None])

    def addition(self, coefficient: float = 1.0) -> Intervention:
        """Return the addition of the difference in means after the block it was read at."""
        return Addition(self.direction.raw, self.direction.layer, coefficient, self.region)

    def at(self, region: Region) -> Acting:
        """Return the same acting somewhere else."""
        return replace(self, region=region)

    def conditions(self) -> dict[str, tuple[str, Sequence[Intervention]]]:
        """Return the interventions of the evaluation by name, each with what is done in words."""
        where = _WHERE[self.region]
        left = {"zero": "removed", "complied": "set to its value in complied prompts"}[self.ablate_to]
        found: dict[str, tuple[str, Sequence[Intervention]]] = {
            "baseline": ("nothing", ()),
            "ablation": (f"the direction {left} at every place of the stream, {where}", (self.ablation(),)),
        }
        if self.ablate_to != "zero" or self.region is not Region.ALL:
            words = f"the direction removed at every place of the stream, {_WHERE[Region.ALL]}"
            found["published ablation"] = (words, (self.published_ablation(),))
        place = f"after block {self.direction.layer}, {where}"
        for name, sign in (("addition", 1), ("subtraction", -1)):
            words = f"{sign * self.coefficient:+g} times the difference in means, {place}"
            found[name] = (words, (self.addition(sign * self.coefficient),))
        return found


_WHERE = {
    Region.ALL: "at all positions",
    Region.ANSWER: "from the prompt's last token on",
    Region.READOUT: "at the prompt's last token",
}


def choose_region(trials: Mapping[Region, RegionTrial]) -> Region:
    """Return the region whose weaker effect, of ablation and of addition, is largest; ties go to the wider region."""
    return max(trials, key=lambda region: (min(trials[region].removed, trials[region].induced), _WIDTH[region]))


ENOUGH_INDUCED = 0.95
"""Share of complied validation prompts that a coefficient must turn into refusals for no larger one to be tried."""


def choose_coefficient(induced: Mapping[float, float]) -> float:
    """Return the smallest coefficient that induces enough refusals, or else the one that induces most.

    Args:
        induced: Share of complied prompts refused, by coefficient; 1 is the published one.
    """
    enough = [coefficient for coefficient, share in induced.items() if share >= ENOUGH_INDUCED]
    return min(enough) if enough else max(induced, key=lambda coefficient: (induced[coefficient], -coefficient))


_WIDTH = {Region.ALL: 2, Region.ANSWER: 1, Region.READOUT: 0}

"""Which of the sites that qualify decides."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from circuits.site_effects import SiteEffects, Sufficiency
from circuits.study import Profile, Study
from refusal.sites import Site

STRICT, LOOSE = Sufficiency(np.array([0.7]), np.array([0.7])), Sufficiency(np.array([0.4]), np.array([0.4]))


def profile(name: str, sufficiency: Sufficiency) -> Profile:
    """Return a site that qualifies; only what chooses among sites is there."""
    made = object.__new__(Profile)
    nothing = np.zeros((1, 1, 1))
    object.__setattr__(made, "effects", SiteEffects(Site.parse(name), nothing, nothing[0], nothing[0]))
    object.__setattr__(made, "sufficiency", sufficiency)
    return made


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ({"residuals_1": STRICT, "neurons_2": LOOSE, "neurons_3": STRICT}, ["neurons_2"]),
        ({"residuals_1": STRICT, "residuals_2": LOOSE, "neurons_3": STRICT}, ["residuals_1"]),
        ({"residuals_2": LOOSE, "mlp_2": LOOSE, "neurons_3": STRICT}, ["residuals_2", "mlp_2"]),
        ({"neurons_3": LOOSE}, ["neurons_3"]),
    ],
    ids=["an-earlier-block-writes", "streams-before-the-last-block", "loose-streams-too", "nothing-else"],
)
def test_neurons_of_the_last_block_decide_last(candidates, expected):
    profiles = [profile(name, sufficiency) for name, sufficiency in candidates.items()]
    study = SimpleNamespace(candidates=profiles, last_layer=3)
    assert [str(each.site) for each in Study.deciding.func(study)] == expected

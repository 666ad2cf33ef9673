"""Which of the sites that qualify decides."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from circuits.site_effects import Sufficiency
from circuits.study import Study
from refusal.sites import Site

STRICT, LOOSE = Sufficiency(np.array([0.7]), np.array([0.7])), Sufficiency(np.array([0.4]), np.array([0.4]))


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
    profiles = [
        SimpleNamespace(site=Site.parse(name), sufficiency=sufficiency) for name, sufficiency in candidates.items()
    ]
    study = SimpleNamespace(candidates=profiles, last_layer=3)
    assert [str(profile.site) for profile in Study.deciding.func(study)] == expected

"""Which of the sites that qualify decides."""

from __future__ import annotations

import numpy as np
import pytest

from circuits.site_effects import SiteEffects, Sufficiency
from circuits.study import Profile, Study
from refusal.sites import Site, SiteKind

STRICT, LOOSE = Sufficiency(np.array([0.7]), np.array([0.7])), Sufficiency(np.array([0.4]), np.array([0.4]))


def profile(name: str, sufficiency: Sufficiency) -> Profile:
    """Return a site that qualifies; only what chooses among sites is there."""
    made = object.__new__(Profile)
    nothing = np.zeros((1, 1, 1))
    object.__setattr__(made, "effects", SiteEffects(Site.parse(name), nothing, nothing[0], nothing[0]))
    object.__setattr__(made, "sufficiency", sufficiency)
    return made


@pytest.mark.parametrize(
    ("candidates", "mixing", "expected"),
    [
        ({"residuals_1": STRICT, "neurons_2": LOOSE, "neurons_3": STRICT}, 0.05, ["neurons_2"]),
        ({"residuals_1": STRICT, "residuals_2": LOOSE, "neurons_3": STRICT}, 0.0, ["residuals_1"]),
        ({"residuals_1": STRICT, "neurons_2": STRICT, "neurons_3": STRICT}, 0.06, ["residuals_1"]),
        ({"residuals_0": STRICT, "neurons_2": STRICT}, None, ["neurons_2"]),
        ({"residuals_2": LOOSE, "mlp_2": LOOSE, "neurons_3": STRICT}, 0.0, ["residuals_2", "mlp_2"]),
        ({"neurons_3": LOOSE}, 0.5, ["neurons_3"]),
    ],
    ids=[
        "an-earlier-block-writes",
        "the-last-block-writes",
        "neurons-mix",
        "not-measured",
        "loose-streams",
        "nothing-else",
    ],
)
def test_neurons_that_mix_decisions_or_write_the_answer_decide_last(candidates, mixing, expected):
    profiles = [profile(name, sufficiency) for name, sufficiency in candidates.items()]
    study = object.__new__(Study)
    mixed = {each.site: mixing for each in profiles if each.site.kind is SiteKind.NEURONS}
    vars(study).update(candidates=profiles, last_layer=3, mixing=mixed)
    assert [str(each.site) for each in study.deciding] == expected

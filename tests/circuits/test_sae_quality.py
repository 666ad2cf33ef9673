"""Which SAEs can carry a circuit, what is said of those that cannot, and whose verdict it takes away."""

from __future__ import annotations

import pytest
from made_metrics import sae_metrics

from circuits import narrate
from circuits.sae_quality import notices, site_qualities, site_quality, unfit
from refusal.artefacts import ResultPaths
from refusal.errors import ArtefactError
from refusal.sites import Site

SITE, NEURONS = Site.parse("residuals_1"), Site.parse("neurons_1")


def test_good_saes_have_no_problems():
    quality = site_quality([sae_metrics(seed=seed) for seed in (0, 1, 2)])
    assert quality.problems == ()
    assert quality.stability_seeds == pytest.approx(0.75)
    assert quality.stability_halves == pytest.approx(0.7)
    assert [each.value for each in quality.fvu] == [0.05] * 3


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ({"fvu": 0.62}, "held-out FVU 0.62 (at most 0.50 is allowed)"),
        ({"signal": 0.31}, "refusal signal recovered 0.31 (at least 0.50 is needed)"),
        ({"signal": -2.0}, "refusal signal recovered -2.00 (at least 0.50 is needed)"),
        ({"seeds": 0.41}, "latents of two seeds match with a mean cosine of 0.41 (at least 0.50 is needed)"),
        (
            {"halves": 0.44},
            "latents of two halves of the prompts match with a mean cosine of 0.44 (at least 0.50 is needed)",
        ),
    ],
)
def test_each_limit_has_its_sentence(bad, problem):
    assert site_quality([sae_metrics(**bad)]).problems == (problem,)
    assert notices([site_quality([sae_metrics(**bad)])]) == (
        f"the SAEs at residuals_1 cannot carry a circuit: {problem}",
    )


@pytest.mark.parametrize("at", [{"fvu": 0.5}, {"signal": 0.5}, {"seeds": 0.5}, {"halves": 0.5}])
def test_at_a_limit_an_sae_is_good_enough(at):
    assert site_quality([sae_metrics(**at)]).problems == ()


def test_one_seed_of_three_may_miss_a_limit_and_two_may_not():
    one = [sae_metrics(fvu=0.9), sae_metrics(seed=1), sae_metrics(seed=2)]
    assert site_quality(one).problems == ()
    two = [sae_metrics(fvu=0.9), sae_metrics(seed=1, fvu=0.8), sae_metrics(seed=2)]
    assert site_quality(two).problems == ("held-out FVU 0.90, 0.80, 0.05 by seed (at most 0.50 is allowed)",)


def test_what_was_not_measured_is_not_held_against_a_site():
    unmeasured = sae_metrics(signal=None, seeds=None, halves=None)
    assert site_quality([unmeasured]).problems == ()
    assert site_quality([unmeasured.model_copy(update={"fidelity": None})]).fvu == ()
    assert site_quality([sae_metrics(seed=None, seeds=None, halves=None)]).seeds == (None,)


def test_only_a_deciding_site_with_saes_takes_the_verdict_away():
    bad = site_quality([sae_metrics(fvu=0.62)])
    assert unfit([bad], [NEURONS]) == ()
    assert unfit([bad], [Site.parse("residuals_2")]) == ()
    assert unfit([bad], [NEURONS, SITE]) == (bad,)
    assert narrate.saes_unfit([bad]) == (
        "The verdict would rest on the SAEs at residuals_1, which cannot carry a circuit: held-out FVU 0.62 (at most "
        "0.50 is allowed); train them on more prompts or with other settings."
    )


def test_quality_is_read_from_the_folders_of_the_configured_seeds(tmp_path):
    paths = ResultPaths(tmp_path)
    for seed, folder_seed in ((0, None), (1, 1), (9, 9)):
        folder = paths.sae("planted/modular", SITE, folder_seed)
        sae_metrics(seed=seed).save(folder / "metrics.json")
    (found,) = site_qualities(paths, "planted/modular", [SITE, Site.parse("residuals_2")], (0, 1))
    assert found.seeds == (0, 1), "an SAE of a seed that is no longer configured does not count"
    (paths.sae("planted/modular", SITE) / "metrics.json").write_text("{")
    with pytest.raises(ArtefactError, match=r"metrics\.json: not readable as JSON"):
        site_qualities(paths, "planted/modular", [SITE], (0,))

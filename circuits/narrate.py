"""The sentences of a verdict: what was found, how sure it is, and why there is no answer when there is none."""

from __future__ import annotations

from collections.abc import Sequence

from circuits.site_effects import MIN_SUFFICIENCY, MIN_SUFFICIENCY_RATIO
from circuits.study import Study
from circuits.verdict import MIN_MARGIN, MIN_SHARE_NECESSARY, Decision, Verdict
from refusal.schemas import Interval, SeedResult, SiteQuality
from refusal.sites import Site, SiteKind
from refusal.wording import estimate, plural

Groups = tuple[tuple[str, ...], ...]


def reason(decision: Decision, average: float, interval: Interval, site: Site, groups: Groups) -> str:
    """Return the sentence that a reader can quote."""
    measured = (
        f"removing one category's circuit at {_in_words(site)} removes on average "
        f"{estimate(average, interval)} of what another category's own circuit removes (1 = one mechanism, "
        "0 = separate ones)"
    )
    if decision.verdict is Verdict.UNDETERMINED:
        return (
            f"The interval crosses a threshold without a clear side: {measured}; "
            f"{decision.share:.0%} of the draws read {decision.leaning}; more prompts per category would tell."
        )
    return f"{_lead(decision.verdict, groups)}: {measured}; {decision.share:.0%} of the bootstrap draws agree."


def _in_words(site: Site) -> str:
    inside = site.kind is SiteKind.NEURONS
    return f"{site} (the MLP neurons of a block that writes the decision)" if inside else str(site)


def _lead(verdict: Verdict, groups: Groups) -> str:
    n = sum(len(group) for group in groups)
    several = [group for group in groups if len(group) > 1]
    if verdict is Verdict.MONOLITHIC:
        return f"The {n} categories share one refusal mechanism"
    if verdict is Verdict.PARTIALLY_MODULAR:
        return "Refusal is shared in part: " + (_groups(several) if len(groups) > 1 else "circuits overlap")
    if several:
        return f"Refusal is modular, in {len(groups)} groups of categories"
    return f"Each of the {n} categories refuses through a mechanism of its own"


def _groups(several: list[tuple[str, ...]]) -> str:
    return " and ".join(f"{len(group)} categories share one mechanism" for group in several)


def no_mechanism(study: Study) -> str | None:
    """Return why no site can decide, or None when one can."""
    chance = _by_chance(study)
    if chance is not None:
        return chance
    if study.commit is None:
        return "No residual site carries most of the decision directly, so there is no depth at which it is made."
    return None if study.candidates else _no_site(study, study.commit)


def _by_chance(study: Study) -> str | None:
    """Return how chance and not the prompt makes the model refuse, or None when it does not."""
    if min(study.margins) < MIN_MARGIN:
        refused, complied = study.margins
        return (
            f"The model's decisions are toss-ups: the median log-odds of the answer it gives are {refused:.2f} on "
            f"refused and {complied:.2f} on complied prompts (at least {MIN_MARGIN} on both is needed), so small "
            "changes of the wording flip them and there is no mechanism to compare."
        )
    if study.lead < MIN_MARGIN:
        return (
            "The model's refusals are toss-ups: on the median refused prompt the tokens that begin its refusals lead "
            f"over the best other first token by {study.lead:.2f} in log-odds (at least {MIN_MARGIN} is needed), so "
            "chance decides and there is no mechanism to compare."
        )
    if study.text_auc is not None and study.text_auc.is_noise:
        found = study.text_auc
        return (
            f"Nothing in the prompts predicts what the model does: within a category, words tell refused from complied "
            f"prompts with an AUC of {found.mean:.2f} [{found.low:.2f}, {found.high:.2f}] (0.5 is chance), so its "
            "refusals are noise or memory of single prompts and there is no mechanism to compare."
        )
    return None


def _no_site(study: Study, commit: Site) -> str:
    """Return why none of the sites under study says anything about the mechanism."""
    before = [profile for profile in study.profiles if study.is_before(profile.site)]
    if not before:
        sites = ", ".join(str(profile.site) for profile in study.profiles)
        return (
            f"The decision is committed at {commit}, and none of the sites under study ({sites}) lies before it; "
            "add earlier sites to activation_layers."
        )
    best = max(before, key=lambda profile: float(profile.point.necessity.mean()))
    if best.holds.mean() >= MIN_SHARE_NECESSARY:
        strongest = max(before, key=lambda profile: float(profile.sufficiency.cross[0]))
        own, cross = float(strongest.sufficiency.own[0]), float(strongest.sufficiency.cross[0])
        return (
            f"No site before commit ({commit}) carries decisions: inducing one category's circuit in complied "
            f"prompts of another restores at best {cross:.2f} of the refusal, at {strongest.site}, where the own "
            f"circuit restores {own:.2f}; a decision restores at least {MIN_SUFFICIENCY:.2f} and "
            f"{MIN_SUFFICIENCY_RATIO:.0%} of what the own circuit does. What such sites share is evidence, not a "
            "mechanism."
        )
    return (
        f"At no site before commit ({commit}) does removing a category's own circuit remove enough of its "
        f"refusals: at best {float(best.point.necessity.mean()):.2f} of the difference to complied prompts, at "
        f"{best.site}, with {int(best.holds.sum())} of {len(best.holds)} categories clearly above 0. There is no "
        "mechanism to compare."
    )


def seeds_disagree(seeds: Sequence[SeedResult]) -> str:
    """Return the sentence for SAE seeds that give different verdicts."""
    each = ", ".join(f"seed {seed.seed}: {seed.verdict}" for seed in seeds)
    return f"SAE seeds disagree ({each}), so the answer would be that of a seed, not of the model."


def groups_disagree(groups: Groups, together: float, average: float) -> str:
    """Return the sentence for groups that contradict the mean transfer about whether most pairs share."""
    return (
        f"Whether most categories share a mechanism depends on how it is counted: {plural(len(groups), 'group')} put "
        f"{together:.0%} of the pairs together, and the mean transfer between categories is {average:.2f}."
    )


def shared_in_groups(groups: Groups, together: float, stability: float, average: float, interval: Interval) -> str:
    """Return the sentence for clear groups where the mean transfer alone would read otherwise."""
    why = (
        "smaller because circuits hold part of what a group shares"
        if average < together
        else "larger because circuits hold some of what other groups use"
    )
    return (
        f"{_lead(Verdict.PARTIALLY_MODULAR, groups)}. These groups put {together:.0%} of the pairs together and are "
        f"found again in bootstrap draws (adjusted Rand index {stability:.2f}); the mean transfer between categories, "
        f"{estimate(average, interval)}, is {why}."
    )


def block_unseen(average: float, interval: Interval, site: Site) -> str:
    """Return the sentence for circuits that are apart at a residual site, where no neurons carry decisions."""
    return (
        f"The categories' circuits are apart at {site} (mean transfer {estimate(average, interval)}), but may meet in "
        "a later block, before the last, that writes the decision: its MLP neurons could not be looked at or carry no "
        "decisions, and "
        "before such a block detectors that share a mechanism and detectors that do not look the same."
    )


def cautions(model: str, site: Site) -> tuple[str, ...]:
    """Return what a reader should know of the site that decides; nothing where neurons do."""
    if site.kind is SiteKind.NEURONS:
        return ()
    return (
        f"{model}: the answer rests on {site}, as no neurons of a block before the last that writes the decision "
        "qualified; there evidence and decisions lie side by side, and sharing the one can pass for sharing the other",
    )


def saes_unfit(unfit: Sequence[SiteQuality]) -> str:
    """Return the sentence for a verdict that would rest on SAEs which cannot carry a circuit."""
    sites = " and ".join(quality.site for quality in unfit)
    why = "; ".join(dict.fromkeys(problem for quality in unfit for problem in quality.problems))
    return (
        f"The verdict would rest on the SAEs at {sites}, which cannot carry a circuit: {why}; train them on more "
        "prompts or with other settings."
    )

"""Contrasts are balanced, independent of row order, and say what they leave out."""

from __future__ import annotations

import random

from circuits.contrast import MIN_PROMPTS, build_contrasts
from refusal.schemas import Openers, PromptLabel, RefusalLabels

OPENERS = Openers(
    refusal=(1,),
    compliance=(2,),
    refusal_text=("i",),
    compliance_text=("sure",),
    ambiguous=(),
    answer_prefix=(),
    reason=None,
)


def labels_of(counts, seed=0):
    prompts = [
        PromptLabel(
            id=f"{category}-{behaviour}-{index}",
            category=category,
            dataset_label="safe",  # deliberately the wrong file: behaviour decides
            source="80k",
            behaviour=behaviour,
            rule="test",
            first_token_id=1,
            first_token_score=None,
        )
        for category, sides in counts.items()
        for behaviour, n in sides.items()
        for index in range(n)
    ]
    random.Random(seed).shuffle(prompts)
    return RefusalLabels.build(model="m", openers=OPENERS, notices=(), prompts=tuple(prompts))


COUNTS = {
    "violence": {"refused": 20, "complied": 30, "cannot_tell": 5},
    "privacy": {"refused": 12, "complied": 15},
    "hate": {"refused": MIN_PROMPTS - 1, "complied": 40},
}


def test_contrasts_are_equally_many_in_every_category_and_side():
    contrasts = build_contrasts(labels_of(COUNTS), ("violence", "privacy", "hate"), seed=0)
    assert contrasts.categories == ("violence", "privacy")
    for category in (0, 1):
        assert len(contrasts.rows(category, refused=True)) == 12
        assert len(contrasts.rows(category, refused=False)) == 15
        for refused in (True, False):
            folds = [len(contrasts.rows(category, refused=refused, fold=fold)) for fold in (0, 1)]
            assert abs(folds[0] - folds[1]) <= 1


def test_contrasts_follow_behaviour_and_leave_out_what_is_neither():
    contrasts = build_contrasts(labels_of(COUNTS), ("violence", "privacy"), seed=0)
    for row, prompt_id in enumerate(contrasts.prompt_ids):
        assert ("refused" in prompt_id) == contrasts.is_refused[row]
        assert "cannot_tell" not in prompt_id


def test_contrasts_do_not_depend_on_the_order_of_rows():
    one, two = (build_contrasts(labels_of(COUNTS, seed), ("violence", "privacy"), seed=3) for seed in (0, 1))
    assert one.prompt_ids == two.prompt_ids
    assert one.fold.tolist() == two.fold.tolist()


def test_contrasts_when_a_category_is_short_say_the_number():
    contrasts = build_contrasts(labels_of(COUNTS), ("violence", "privacy", "hate"), seed=0)
    assert contrasts.counts["hate"].reason_left_out == f"only 5 prompts refused; at least {MIN_PROMPTS} are needed"
    assert contrasts.counts["violence"].reason_left_out is None

"""What directions say in words: every answer, and every reason for not giving one."""

from __future__ import annotations

import pytest
from direction_records import geometry, transfer

from circuits.directions.verdict import LIMITS, Answer, state
from refusal.config import AnalysisConfig

THRESHOLDS = AnalysisConfig()


@pytest.mark.parametrize(("groups", "answer"), [(1, Answer.ONE), (6, Answer.PER_CATEGORY), (2, Answer.GROUPS)])
def test_each_mechanism_gets_its_answer_from_transfer_and_from_cosines(groups: int, answer: Answer) -> None:
    for moved in ([transfer(1.0, groups)], []):
        found = state(geometry(groups), moved, "residuals_2", THRESHOLDS)
        assert found.answer is answer
        assert found.layer == 1
        assert found.evidence == ("transfer" if moved else "cosine")
        assert len(found.groups or ()) == groups
        assert found.limits == LIMITS
        assert "residuals_1, the last before the decision" in found.reason


def test_transfer_between_the_thresholds_without_groups_cannot_tell() -> None:
    found = state(geometry(1), [transfer(0.65, 1)], "residuals_2", THRESHOLDS)
    assert found.answer is Answer.CANNOT_TELL
    assert "neither at or above 0.80 nor below 0.50" in found.reason


def test_thresholds_are_those_of_the_configuration() -> None:
    lower = AnalysisConfig(monolithic_threshold=0.6, partially_modular_threshold=0.3)
    assert state(geometry(1), [transfer(0.65, 1)], "residuals_2", lower).answer is Answer.ONE


def test_without_own_necessity_cosines_are_the_evidence() -> None:
    found = state(geometry(1), [transfer(0.0, 6, necessity=0.02)], "residuals_2", THRESHOLDS)
    assert (found.evidence, found.answer) == ("cosine", Answer.ONE)


@pytest.mark.parametrize(
    ("commit", "reason"),
    [
        (None, "which layers lie before the decision is not known; run the compare stage"),
        ("residuals_0", "the decision is made by residuals_0, and no layer before it was read"),
    ],
)
def test_without_a_layer_before_the_decision_it_cannot_tell(commit: str | None, reason: str) -> None:
    found = state(geometry(1), [], commit, THRESHOLDS)
    assert found.answer is Answer.CANNOT_TELL
    assert reason in found.reason
    assert (found.mean, found.groups) == (None, None)

"""The sentences say what the numbers say: who writes, whether controls do as much, and what cannot be told."""

from __future__ import annotations

import pytest

from refusal.patching.records import (
    ConditionRecord,
    MapRecord,
    PairsRecord,
    PatchingResults,
    RefusalsRecord,
    StructureRecord,
    UnitRecord,
)
from refusal.patching.sentences import in_words
from refusal.schemas import Measure, Rate
from refusal.stats import wilson_interval


def measure(value, low, high):
    return Measure(value=value, low=low, high=high, n=50, method="bootstrap", reason=None)


def writer(name, value, *, is_critical=True):
    return UnitRecord.model_construct(
        name=name, head=None, effect=measure(value, value - 0.05, value + 0.05), is_critical=is_critical
    )


def condition(name, n_refused, *, n_units=4):
    found = wilson_interval(n_refused, 40)
    rate = Rate(value=found.value, low=found.low, high=found.high, k=n_refused, n=40)
    refusals = RefusalsRecord(refusal=rate, n_unclear=0)
    return ConditionRecord(kind="heads", name=name, n_units=n_units, draws=1, refusals=refusals)


def said(maps=(), validation=(), structure=(), layers=None):
    return in_words(
        PatchingResults.model_construct(
            pairs=PairsRecord.model_construct(n=50),
            maps=maps,
            validation=validation,
            structure=structure,
            clamping=(),
            criteria={"min_effect": 0.05},
            critical_heads=(),
            critical_layers=layers or {},
        )
    )


def test_the_layer_that_writes_most_both_ways_is_named_first():
    maps = tuple(
        MapRecord.model_construct(kind="writers", mode=mode, units=tuple(writer(*each) for each in units))
        for mode, units in (("denoise", (("mlp_1", 0.9), ("mlp_2", 0.6))), ("noise", (("mlp_1", 0.2), ("mlp_2", 0.7))))
    )
    assert said(maps)[0].startswith(
        "The decision is written by mlp_2 (restores 0.60 [0.55, 0.65] and removes 0.70 [0.65, 0.75]); then by mlp_1"
    )
    small = MapRecord.model_construct(kind="writers", mode="noise", units=(writer("mlp_1", 0.02, is_critical=False),))
    assert said((small,))[0].startswith("No layer writes the decision by itself; mlp_1")


@pytest.mark.parametrize(
    ("ablated", "random", "n_random", "wanted"),
    [
        (0, 40, 4, "they are needed"),
        (38, 40, 4, "no more is lost than by chance"),
        (0, 40, 1, "the control has fewer, so this does not tell"),
    ],
)
def test_critical_units_are_called_needed_only_beside_a_control_that_does_less(ablated, random, n_random, wanted):
    conditions = (condition("critical ablated", ablated), condition("random ablated", random, n_units=n_random))
    assert wanted in said(validation=conditions)[-1]


@pytest.mark.parametrize(
    ("mean", "wanted"),
    [
        ((1.0, 0.95, 1.1), "the same neurons at"),
        ((0.02, 0.01, 0.04), "other neurons at"),
        ((0.6, 0.55, 0.7), "partly the same neurons at"),
        ((0.9, 0.1, 5.6), "not to be told"),
    ],
)
def test_categories_are_compared_at_the_critical_layers_by_their_interval(mean, wanted):
    structure = tuple(
        StructureRecord.model_construct(site=f"neurons_{layer}", mean=measure(*mean)) for layer in (2, 10)
    )
    sentence = said(structure=structure, layers={"mlp": ("mlp_10",)})[-1]
    assert wanted in sentence
    assert "neurons_10" in sentence
    assert "neurons_2 " not in sentence

"""Specificity: cosines against the plain formulas, the null against its definition, activations against the model's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made_directions import along
from tiny_models import PROMPTS

from refusal.directions.contrast import ContrastSet
from refusal.directions.specificity import capture_contrast, contrast_tokens, shuffled_cosines, specificity
from refusal.errors import InputError
from refusal.stats import permutation_p


def contrast_of(n: int) -> ContrastSet:
    is_positive = np.repeat([True, False], n)
    return ContrastSet("made", tuple(f"text {i}" for i in range(2 * n)), is_positive, "first", "second")


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def made(true_cosine: float, n: int = 25, d_model: int = 40):
    """Return activations of a contrast set and of refused and complied prompts, one layer."""
    generator = np.random.default_rng(0)
    directions = np.zeros((2, d_model))
    directions[0, 0] = 8
    directions[1, :2] = 8 * true_cosine, 8 * np.sqrt(1 - true_cosine**2)
    acts = along(directions, n, generator)
    return acts[: 2 * n, None], acts[2 * n :, None], np.repeat([True, False], n)


@pytest.mark.parametrize("true_cosine", [0.0, 0.7])
def test_numbers_are_those_of_the_plain_formulas(true_cosine: float) -> None:
    theirs, ours, is_refused = made(true_cosine)
    (found,) = specificity(contrast_of(25), theirs, ours, is_refused, draws=200, permutations=200).layers
    first, second, refused, complied = theirs[:25, 0], theirs[25:, 0], ours[:25, 0], ours[25:, 0]
    contrast, refusal = first.mean(0) - second.mean(0), refused.mean(0) - complied.mean(0)
    assert found.cosine.value == pytest.approx(cosine(contrast, refusal))
    assert found.norm == pytest.approx(np.linalg.norm(contrast))
    assert found.mean_positive.value == pytest.approx(cosine(contrast, first.mean(0)))
    assert found.mean_negative.value == pytest.approx(cosine(contrast, second.mean(0)))
    assert found.refusal_mean_positive.value == pytest.approx(cosine(refusal, first.mean(0)))
    assert found.refusal_mean_negative.value == pytest.approx(cosine(refusal, second.mean(0)))
    assert found.ratio.value == pytest.approx(found.cosine.value / found.ceiling)
    for each in (found.cosine, found.ratio, found.mean_positive, found.refusal_mean_negative):
        assert each.low <= each.value <= each.high
    assert found.ratio.value == pytest.approx(true_cosine, abs=0.15)
    assert found.p is not None
    assert (found.p < 0.05) == (true_cosine > 0.5)


def test_shuffled_cosines_are_differences_in_means_of_shuffled_classes() -> None:
    generator = np.random.default_rng(1)
    acts, direction = generator.normal(size=(6, 5)), generator.normal(size=5)
    is_positive = np.array([True, True, False, False, False, False])
    found = shuffled_cosines(acts, is_positive, direction, 2000, generator)
    possible = []
    for i in range(6):
        for j in range(i):
            rows = np.isin(np.arange(6), [i, j])
            possible.append(cosine(acts[rows].mean(0) - acts[~rows].mean(0), direction))
    assert np.abs(found[:, None] - np.array(possible)[None]).min(1).max() < 1e-9
    assert found.mean() == pytest.approx(np.mean(possible), abs=0.03)


def test_p_is_uniform_when_labels_carry_nothing() -> None:
    generator = np.random.default_rng(2)
    found = []
    for _ in range(200):
        acts, direction = generator.normal(size=(20, 8)) + 3, generator.normal(size=8)
        is_positive = np.repeat([True, False], 10)
        null = shuffled_cosines(acts, is_positive, direction, 99, generator)
        observed = cosine(acts[:10].mean(0) - acts[10:].mean(0), direction)
        found.append(permutation_p(observed, null, "two-sided"))
    assert 0.02 <= np.mean(np.array(found) <= 0.1) <= 0.18
    assert 0.4 <= np.mean(found) <= 0.6


def test_texts_that_are_alike_to_the_model_are_told_and_give_no_ratio() -> None:
    _, ours, is_refused = made(0.0)
    found = specificity(contrast_of(25), np.ones((50, 1, 40)), ours, is_refused, draws=100, permutations=20)
    assert found.notices == (
        "contrast made: 50 texts are only 1 different ones to the model, most likely because it does not know their "
        "words",
    )
    (layer,) = found.layers
    assert layer.ratio.value is None
    assert layer.ceiling is None
    assert layer.cosine.value is None
    assert layer.p is None
    assert layer.mean_positive.value is None


def test_no_permutations_is_no_test() -> None:
    theirs, ours, is_refused = made(0.5)
    (found,) = specificity(contrast_of(25), theirs, ours, is_refused, draws=100, permutations=0).layers
    assert (found.p, found.null_low, found.null_high) == (None, None, None)


def test_other_layers_or_widths_cannot_be_compared() -> None:
    theirs, ours, is_refused = made(0.5)
    with pytest.raises(ValueError, match=r"activations of \(1, 39\) cannot be compared with those of \(1, 40\)"):
        specificity(contrast_of(25), theirs[..., :39], ours, is_refused)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_captured_activations_are_the_hidden_states_of_the_last_prompt_token(tiny_model, family: str) -> None:
    model = tiny_model(family)
    found = capture_contrast(model, PROMPTS, batch_size=2, answer_prefix=[7])
    assert found.shape == (len(PROMPTS), model.n_layers, model.d_model)
    for row, ids in enumerate(model.tokenize(PROMPTS)):
        with torch.no_grad():
            states = model.model(input_ids=torch.tensor([[*ids, 7]]), output_hidden_states=True).hidden_states
        for layer in range(model.n_layers - 1):  # the last hidden state has the final norm applied
            torch.testing.assert_close(found[row, layer], states[layer + 1][0, -1], atol=1e-5, rtol=1e-4)


def test_a_text_longer_than_the_context_is_told_before_it_is_run(tiny_model):
    model = tiny_model("llama")
    limit = model.context_length
    with pytest.raises(InputError, match=rf"begins 'tea tea .*' has \d+ tokens .* reads at most {limit}; shorten"):
        contrast_tokens(model, ["tea", "tea " * limit], None, ())

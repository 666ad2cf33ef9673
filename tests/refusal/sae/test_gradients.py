"""Gradients of the TopK loss by two ways, and the choice of the largest on which they rest."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from known_features import D_MODEL, known_dictionary, make_rows

from refusal.sae.gradients import AuxK, Weights, dense_gradients, sparse_gradients
from refusal.sae.metrics import fvu
from refusal.sae.objectives import OBJECTIVES
from refusal.sae.recipe import Recipe
from refusal.sae.rows import TensorRows, split_rows
from refusal.sae.selection import kth_largest, top_k
from refusal.sae.trainer import Task, train_stack

N_SAES, D_SAE, K = 3, 40, 4


def problem(seed: int = 0, d_model: int = D_MODEL) -> tuple[Weights, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    latents, rows = (N_SAES, D_SAE), (N_SAES, D_SAE, d_model)
    shapes = {"enc": rows, "b_enc": latents, "dec": rows, "b_dec": (N_SAES, d_model), "threshold": latents}
    weights = Weights(**{name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()})
    return weights, torch.randn(N_SAES, 50, d_model, generator=generator)


def some_dead() -> AuxK:
    dead = torch.zeros(N_SAES, D_SAE, dtype=torch.bool)
    dead[0, :20] = dead[1, 5] = True  # more than d_model / 2, one, none
    return AuxK(1 / 32, dead)


@pytest.mark.parametrize("aux", [None, some_dead()])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_sparse_gradients_equal_those_of_autograd(aux, dtype, tolerance):
    weights, acts = problem()
    weights, acts = Weights(*(tensor.to(dtype) for tensor in weights)), acts.to(dtype)
    dense, sparse = (way(weights, acts, K, aux) for way in (dense_gradients, sparse_gradients))
    for one, two in zip(dense.gradients[:4], sparse.gradients[:4], strict=True):
        assert float((one - two).norm() / one.norm()) < tolerance
    assert not dense.gradients.threshold.any()
    assert not sparse.gradients.threshold.any()
    torch.testing.assert_close(dense.loss, sparse.loss)
    assert torch.equal(dense.fired, sparse.fired)


@pytest.mark.parametrize("aux", [None, some_dead()])
def test_a_product_in_bfloat16_only_chooses_latents(aux):
    weights, acts = problem()
    # Powers of two survive the rounding, so both choose the same latents and every gradient must agree in full.
    rounded = Weights(*(tensor.sign() * tensor.abs().log2().round().exp2() for tensor in weights))
    acts = acts.sign() * acts.abs().log2().round().exp2()
    acts[:, :, 1:] = 0
    rounded.b_dec.zero_()
    rounded.b_enc.mul_(2.0**-20)  # too small for bfloat16 beside the rest: only exact values hold it
    exact, chosen = (sparse_gradients(rounded, acts, D_SAE - 1, aux, in_bf16) for in_bf16 in (False, True))
    torch.testing.assert_close(chosen.loss, exact.loss, rtol=1e-6, atol=0)
    for one, two in zip(exact.gradients[:4], chosen.gradients[:4], strict=True):
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-7)


def test_products_in_bfloat16_choose_nearly_the_same_latents():
    weights, acts = problem()
    exact, chosen = (sparse_gradients(weights, acts, K, None, in_bf16) for in_bf16 in (False, True))
    torch.testing.assert_close(chosen.loss, exact.loss, rtol=0.01, atol=0)
    assert float((exact.fired - chosen.fired).abs().sum() / exact.fired.sum()) < 0.02


@pytest.mark.parametrize("architecture", OBJECTIVES)
def test_training_with_products_in_bfloat16_recovers_the_dictionary_too(architecture):
    rows = torch.cat([make_rows(seed) for seed in range(1, 6)])
    split = split_rows([f"p{row}" for row in range(len(rows))], ["all"] * len(rows), ["a"] * len(rows), 0)
    found = {}
    for dtype in ("float32", "bfloat16"):
        recipe = Recipe(32, 2, 800, 64, 0.01, architecture=architecture, matmul_dtype=dtype)
        (trained,) = train_stack([Task("residuals_0", 0, TensorRows(rows))], split, recipe)
        assert trained.sae.W_dec.dtype == torch.float32
        cosine = (trained.sae.W_dec @ known_dictionary().T).max(0).values.mean()
        fresh = make_rows(seed=99)
        found[dtype] = (float(cosine), fvu(fresh, trained.sae(fresh).reconstruction))
    assert found["bfloat16"][0] > found["float32"][0] - 0.05
    assert found["bfloat16"][1] < found["float32"][1] + 0.05


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 60),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    ties=st.booleans(),
    data=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_the_largest_are_those_that_torch_finds(seed, n, dtype, ties, data):
    k = data.draw(st.integers(1, n))
    pre = torch.randn(2, 3, n, generator=torch.Generator().manual_seed(seed))
    pre = (pre.round() if ties else pre).to(dtype)
    chosen = top_k(pre, k)
    assert chosen.shape == (2, 3, k)
    assert all(len(set(row)) == k for row in chosen.reshape(-1, k).tolist()), "each at most once"
    ours, theirs = (values.relu().sort(-1).values for values in (pre.gather(-1, chosen), pre.topk(k).values))
    assert torch.equal(ours, theirs)
    smallest = kth_largest(pre.reshape(-1, n), k)
    assert torch.equal(smallest, pre.reshape(-1, n).topk(k).values[:, -1].clamp_min(0))

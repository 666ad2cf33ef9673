"""SAEs: a known dictionary, seeds, stacks, and the format in both directions."""

from __future__ import annotations

import pytest
import torch
from known_features import D_MODEL, N_ROWS, known_dictionary, make_rows

from refusal import sae as saes
from refusal.errors import ArtefactError, InputError
from refusal.sae.gradients import Weights
from refusal.sae.metrics import fvu
from refusal.sae.objectives import BANDWIDTH, L0_WEIGHT, OBJECTIVES, BatchTopK, JumpRelu, Matryoshka, Relu
from refusal.sae.recipe import Recipe
from refusal.sae.rows import RowSplit, TensorRows, split_rows
from refusal.sae.trainer import Task, Trained, train_stack


def train(
    rows: torch.Tensor, names_and_seeds: list[tuple[str, int]], steps: int = 300, **fields: float
) -> list[Trained]:
    ids = [f"p{row}" for row in range(len(rows))]
    split = split_rows(ids, ["all"] * len(rows), ["a", "b"] * (len(rows) // 2), 0)
    recipe = Recipe(**{"d_sae": 32, "k": 2, "steps": steps, "batch_size": 64, "lr": 0.01, **fields})
    return train_stack([Task(name, seed, TensorRows(rows)) for name, seed in names_and_seeds], split, recipe)


def test_training_recovers_a_known_dictionary():
    (trained,) = train(make_rows(), [("residuals_0", 0)], steps=1500)
    cosine = trained.sae.W_dec @ known_dictionary().T
    assert float(cosine.max(0).values.mean()) > 0.8
    fresh = make_rows(seed=2)
    assert fvu(fresh, trained.sae(fresh).reconstruction) < 0.6


def test_decoder_rows_have_norm_one_and_act_in_raw_space():
    (trained,) = train(make_rows(), [("residuals_0", 0)])
    torch.testing.assert_close(trained.sae.W_dec.norm(dim=-1), torch.ones(32))
    rows = make_rows()
    assert trained.sae(rows).reconstruction.mean() == pytest.approx(float(rows.mean()), rel=0.02)


def test_a_seed_decides_the_training_bit_for_bit_and_another_differs():
    one, two, other = (train(make_rows(), [("residuals_0", seed)])[0].sae.W_dec for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.allclose(one, other)


def test_saes_trained_together_equal_those_trained_apart():
    keys = [("residuals_0", 0), ("residuals_0", 1), ("residuals_1", 0)]
    together = train(make_rows(), keys, steps=40)
    for key, trained in zip(keys, together, strict=True):
        (alone,) = train(make_rows(), [key], steps=40)
        torch.testing.assert_close(alone.sae.W_enc, trained.sae.W_enc, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"k": 33}, r"sae\.k: is 33, allowed are 1 to d_sae = 32"), ({"d_sae": 10**6}, r"sae\.d_sae")],
)
def test_settings_that_do_not_fit_the_data_are_told(fields, message):
    with pytest.raises(InputError, match=message):
        train(make_rows(), [("residuals_0", 0)], **fields)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_told(bad):
    rows = make_rows()
    rows[5:50, 3] = bad
    with pytest.raises(InputError, match="45 activation rows hold NaN or infinity"):
        train(rows, [("residuals_0", 0)])


def test_rows_that_are_all_the_same_are_told():
    with pytest.raises(InputError):
        train(torch.ones(N_ROWS, D_MODEL), [("residuals_0", 0)])


@pytest.mark.parametrize("n_heldout", [1, 3])
def test_held_out_rows_without_variance_do_not_choose_the_weights(n_heldout):
    rows = make_rows()
    rows[:n_heldout] = rows[0]
    split = RowSplit(torch.arange(n_heldout, N_ROWS), torch.ones(N_ROWS - n_heldout).double(), torch.arange(n_heldout))
    recipe = Recipe(d_sae=32, k=2, steps=300, batch_size=64, lr=0.01)
    (trained,) = train_stack([Task("residuals_0", 0, TensorRows(rows))], split, recipe)
    assert trained.best_step > 0
    assert trained.history[-1].fvu_heldout is None
    assert fvu(rows, trained.sae(rows).reconstruction) < 0.7


@pytest.fixture
def saved(tmp_path):
    (trained,) = train(make_rows(), [("residuals_0", 0)], steps=60)
    trained.sae.save(tmp_path)
    return trained.sae, tmp_path


def test_save_and_load_give_the_same_latents_bit_for_bit(saved):
    sae, folder = saved
    assert torch.equal(saes.load(folder).encode(make_rows()), sae.encode(make_rows()))


def test_sae_lens_loads_what_we_save_and_encodes_the_same(sae_lens, saved):
    sae, folder = saved
    theirs = sae_lens.SAE.load_from_disk(folder)
    rows = make_rows()
    with torch.no_grad():
        torch.testing.assert_close(theirs.encode(rows), sae.encode(rows), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(theirs.decode(theirs.encode(rows)), sae(rows).reconstruction, atol=1e-5, rtol=1e-5)


def test_damaged_weights_and_missing_files_are_told(saved):
    _, folder = saved
    (folder / "sae_weights.safetensors").write_bytes(b"not weights")
    with pytest.raises(ArtefactError, match=r"sae_weights\.safetensors"):
        saes.load(folder)
    (folder / "cfg.json").unlink()
    with pytest.raises(ArtefactError, match=r"cfg\.json"):
        saes.load(folder)


@pytest.mark.parametrize("architecture", OBJECTIVES)
def test_every_architecture_recovers_a_known_dictionary_at_the_l0_asked_for(architecture):
    rows = torch.cat([make_rows(seed) for seed in range(1, 6)])
    (trained,) = train(rows, [("residuals_0", 0)], steps=1500, architecture=architecture)
    found = trained.sae(make_rows(seed=99))
    assert float((found.latents > 0).sum(1).double().mean()) == pytest.approx(2, rel=0.3)
    recovered = (trained.sae.W_dec @ known_dictionary().T).max(0).values.mean()
    assert float(recovered) > (0.85 if architecture == "matryoshka" else 0.95)
    assert fvu(make_rows(seed=99), found.reconstruction) < (0.6 if architecture == "relu" else 0.3)


@pytest.mark.parametrize("architecture", OBJECTIVES)
def test_every_architecture_loads_in_saelens_and_encodes_the_same(sae_lens, architecture, tmp_path):
    (trained,) = train(make_rows(), [("residuals_0", 0)], steps=60, architecture=architecture)
    trained.sae.save(tmp_path)
    fresh = make_rows(seed=3)
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path))
    torch.testing.assert_close(theirs.encode(fresh), trained.sae.encode(fresh), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(theirs.decode(theirs.encode(fresh)), trained.sae(fresh).reconstruction)
    assert torch.equal(saes.load(tmp_path).encode(fresh), trained.sae.encode(fresh))


def test_a_stack_of_any_architecture_trains_as_its_members_would_alone():
    for architecture in OBJECTIVES:
        together = train(make_rows(), [("residuals_0", 0), ("residuals_1", 1)], steps=40, architecture=architecture)
        (alone,) = train(make_rows(), [("residuals_1", 1)], steps=40, architecture=architecture)
        torch.testing.assert_close(together[1].sae.W_dec, alone.sae.W_dec, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together[1].sae.b_enc, alone.sae.b_enc, rtol=1e-4, atol=1e-5)


def objective_step(objective, seed=0, n=40):
    generator = torch.Generator().manual_seed(seed)
    dec = torch.nn.functional.normalize(torch.randn(1, 8, D_MODEL, generator=generator), dim=-1)
    biases = (torch.zeros(1, 8), dec, torch.zeros(1, D_MODEL), torch.full((1, 8), 0.1))
    weights = Weights(dec.clone(), *biases)
    acts = torch.randn(1, n, D_MODEL, generator=generator)
    return weights, acts, objective.step(weights, acts, None)


def test_batchtopk_keeps_k_a_row_on_average_and_its_threshold_is_the_smallest_kept():
    objective = BatchTopK(2, 1)
    weights, acts, found = objective_step(objective)
    assert float(found.fired.sum()) == 2 * 40
    pre = torch.bmm(acts, weights.enc.mT)
    smallest = pre.flatten().sort(descending=True).values[79]
    assert objective.threshold[0] == pytest.approx(float(smallest), rel=1e-5), "right after one step: no bias to 0"


def test_matryoshka_with_one_prefix_is_batchtopk(monkeypatch):
    monkeypatch.setattr("refusal.sae.objectives.PREFIXES", (1.0,))
    one, two = objective_step(Matryoshka(2, 1))[2], objective_step(BatchTopK(2, 1))[2]
    for first, second in zip(one.gradients, two.gradients, strict=True):
        torch.testing.assert_close(first, second)


def test_relu_raises_its_penalty_while_too_many_latents_are_active():
    objective = Relu(1, 1)
    before = float(objective.learned["l1"])
    objective_step(objective)
    assert float(objective.learned["l1"]) > before


def test_jumprelu_threshold_gradient_by_hand():
    objective = JumpRelu(2, 1)
    weights, acts, found = objective_step(objective, n=200)
    pre = torch.bmm(acts, weights.enc.mT)
    width = BANDWIDTH * pre.square().mean().sqrt()
    is_on = (pre > 0.1).float()
    error = torch.bmm(pre * is_on, weights.dec) - acts
    of_latent = torch.bmm(2 * error / (200 * D_MODEL), weights.dec.mT)
    l0 = is_on.sum(2).mean()
    of_count = 2 * L0_WEIGHT * (l0 / 2 - 1) / 2 / 200
    near = ((pre - 0.1).abs() < width / 2).float()
    by_hand = -(near / width * (of_latent * pre + of_count)).sum(1)
    torch.testing.assert_close(found.gradients.threshold, by_hand, rtol=1e-4, atol=1e-7)

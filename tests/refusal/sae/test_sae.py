"""SAEs: gradients by two ways, a known dictionary, seeds, stacks, and the format in both directions."""

from __future__ import annotations

import warnings

import pytest
import torch

from refusal import sae as saes
from refusal.errors import ArtefactError, InputError
from refusal.sae.gradients import Weights, dense_gradients, sparse_gradients
from refusal.sae.metrics import fvu
from refusal.sae.rows import TensorRows, split_rows
from refusal.sae.trainer import Recipe, Task, Trained, train_stack

N_ROWS, D_MODEL, N_TRUE = 600, 16, 24


def known_dictionary() -> torch.Tensor:
    return torch.nn.functional.normalize(
        torch.randn(N_TRUE, D_MODEL, generator=torch.Generator().manual_seed(0)), dim=-1
    )


def make_rows(seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    active = torch.rand(N_ROWS, N_TRUE, generator=generator) < 2 / N_TRUE
    latents = active * (1 + torch.rand(N_ROWS, N_TRUE, generator=generator))
    return 5.0 + latents @ known_dictionary()


def train(
    rows: torch.Tensor, names_and_seeds: list[tuple[str, int]], steps: int = 300, **fields: float
) -> list[Trained]:
    ids = [f"p{row}" for row in range(len(rows))]
    split = split_rows(ids, ["all"] * len(rows), ["a", "b"] * (len(rows) // 2), 0)
    recipe = Recipe(**{"d_sae": 32, "k": 2, "steps": steps, "batch_size": 64, "lr": 0.01, **fields})
    return train_stack([Task(name, seed, TensorRows(rows)) for name, seed in names_and_seeds], split, recipe)


def test_sparse_gradients_equal_those_of_autograd():
    generator = torch.Generator().manual_seed(0)
    n, d_sae = 3, 40
    shapes = {"enc": (n, d_sae, D_MODEL), "b_enc": (n, d_sae), "dec": (n, d_sae, D_MODEL), "b_dec": (n, D_MODEL)}
    weights = Weights(**{name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()})
    acts = torch.randn(n, 50, D_MODEL, generator=generator)
    dense, sparse = (way(weights, acts, 4, None) for way in (dense_gradients, sparse_gradients))
    for one, two in zip(dense.gradients, sparse.gradients, strict=True):
        assert float((one - two).norm() / one.norm()) < 1e-6
    torch.testing.assert_close(dense.loss, sparse.loss)
    assert torch.equal(dense.fired, sparse.fired)


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


@pytest.fixture
def saved(tmp_path):
    (trained,) = train(make_rows(), [("residuals_0", 0)], steps=60)
    trained.sae.save(tmp_path)
    return trained.sae, tmp_path


def test_save_and_load_give_the_same_latents_bit_for_bit(saved):
    sae, folder = saved
    assert torch.equal(saes.load(folder).encode(make_rows()), sae.encode(make_rows()))


def test_sae_lens_loads_what_we_save_and_encodes_the_same(saved):
    sae, folder = saved
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sae_lens import SAE

        theirs = SAE.load_from_disk(folder)
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

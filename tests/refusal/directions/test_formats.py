"""The published layout and prompt splits: meaning, round trips, and what is said of bad files."""

from __future__ import annotations

import json
import os

import pytest
import torch
from hostile_directions import ANY_JSON
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import PROMPTS

from refusal.directions.activations import collect
from refusal.directions.candidates import Contrast, MeanDiffs
from refusal.directions.formats import (
    Instruction,
    read_direction,
    read_evaluations,
    read_published,
    read_split,
    to_published,
    write_published,
    write_split,
)
from refusal.directions.inspection import inspect
from refusal.errors import InputError
from refusal.steering.run import Runs


def made(n_layers=4):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, n_layers, 6, generator=generator, dtype=torch.float64)
    embedding = torch.zeros(2, 6, dtype=torch.float64)
    return MeanDiffs(values, embedding, (-2, -1), 8, 9, Contrast.DATASET_LABEL)


def published_means(model, prompts):
    """Return mean block inputs at the last two positions, as the published code takes them: with pre-hooks."""
    blocks = [model.site_module(site) for site in model.resolve_sites("all")]
    sums = torch.zeros(2, len(blocks), model.d_model, dtype=torch.float64)

    def add(module, args):
        sums[:, blocks.index(module)] += args[0][0, [-2, -1]].double()

    for ids in prompts:
        hooks = [block.register_forward_pre_hook(add) for block in blocks]
        with torch.no_grad():
            model.model(input_ids=torch.tensor([ids]))
        for hook in hooks:
            hook.remove()
    return sums / len(prompts)


def test_written_mean_diffs_are_of_block_inputs_as_published(tiny_model, tmp_path):
    model = tiny_model("llama")
    token_ids = model.tokenize(PROMPTS)
    found = collect(Runs(model), token_ids, [0, 0, 1, 1, 1], (-2, -1), tuple("abcde"))
    diffs = found.sums.mean_diffs([0], [1], Contrast.DATASET_LABEL)
    write_published(tmp_path, diffs, -1, 1)
    wanted = published_means(model, token_ids[:2]) - published_means(model, token_ids[2:])
    stored = torch.load(tmp_path / "mean_diffs.pt", weights_only=True)
    assert stored.dtype == torch.float64
    assert torch.allclose(stored, wanted, atol=1e-5)
    assert json.loads((tmp_path / "direction_metadata.json").read_text()) == {"pos": -1, "layer": 2}
    assert torch.allclose(torch.load(tmp_path / "direction.pt", weights_only=True), wanted[-1, 2], atol=1e-5)


def test_what_was_written_comes_back_as_it_was(tmp_path):
    diffs = made()
    write_published(tmp_path, diffs, -2, 1)
    published = read_published(tmp_path)
    assert published.is_consistent
    assert published.cosine == pytest.approx(1)
    assert torch.equal(published.mean_diffs[:, 1:], diffs.values[:, :-1]), "without the last block"
    assert torch.equal(published.mean_diffs[:, 0], diffs.embedding)
    assert torch.equal(to_published(diffs), published.mean_diffs)


def test_a_direction_is_read_without_its_candidates_and_counts_blocks_as_ours(tmp_path):
    write_published(tmp_path, made(), -2, 1)
    (tmp_path / "mean_diffs.pt").unlink()
    direction = read_direction(tmp_path)
    assert (direction.position, direction.layer, str(direction.site)) == (-2, 1, "residuals_1")
    assert torch.equal(direction.raw, made().vector(-2, 1))


def test_files_are_byte_reproducible_and_the_last_block_cannot_be_written(tmp_path):
    for name in ("a", "b"):
        write_published(tmp_path / name, made(), -1, 0)
    for file in ("mean_diffs.pt", "direction.pt", "direction_metadata.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    with pytest.raises(ValueError, match="no direction after block 3"):
        write_published(tmp_path, made(), -1, 3)


def as_pipe(folder):
    (folder / "direction.pt").unlink()
    os.mkfifo(folder / "direction.pt")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "direction.pt").unlink(), r"direction\.pt: not found; the published layout has"),
        (lambda folder: (folder / "mean_diffs.pt").write_bytes(b"PK"), r"mean_diffs\.pt: cannot be read as a tensor"),
        (lambda folder: (folder / "direction.pt").write_bytes(b""), r"direction\.pt: cannot be read as a tensor"),
        (lambda folder: torch.save({"a": 1}, folder / "direction.pt"), r"found dict, no tensor.*; allowed is a tensor"),
        (lambda folder: torch.save(torch.zeros(6).long(), folder / "direction.pt"), r"found a tensor \(6,\) of torch"),
        (lambda folder: torch.save(torch.ones(5), folder / "direction.pt"), "found 5 numbers; .* has d_model 6"),
        (lambda folder: torch.save(torch.full((6,), torch.nan), folder / "direction.pt"), "not finite"),
        (
            lambda folder: torch.save(torch.ones(1).expand(1 << 40), folder / "direction.pt"),
            r"direction\.pt: .* bytes in",
        ),
        (lambda folder: torch.save(torch.ones(6).to_sparse(), folder / "direction.pt"), "nested, sparse or without"),
        (lambda folder: torch.save(torch.ones(6, device="meta"), folder / "direction.pt"), "nested, sparse or without"),
        (as_pipe, r"direction\.pt: cannot be read as a tensor \(no regular file\)"),
        (lambda folder: (folder / "direction_metadata.json").write_text("{"), "cannot be read as JSON"),
        (lambda folder: (folder / "direction_metadata.json").write_text('{"pos": -1}'), "layer: found None"),
        (
            lambda folder: (folder / "direction_metadata.json").write_text('{"pos": -3, "layer": 9}'),
            "allowed are pos -2 to -1 and layer 0 to 3",
        ),
    ],
)
def test_a_bad_folder_is_told_by_file_and_reason(tmp_path, spoil, said):
    write_published(tmp_path, made(), -1, 1)
    spoil(tmp_path)
    with pytest.raises(InputError, match=said):
        read_published(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda folder: torch.save(torch.zeros(6), folder / "direction.pt"),
            "its length is 0; a direction has a length above 0",
        ),
        (lambda folder: (folder / "direction_metadata.json").write_text('{"pos": 1, "layer": 2}'), "pos counts from"),
        (lambda folder: (folder / "direction_metadata.json").unlink(), "direction_metadata.json: not found"),
    ],
)
def test_a_bad_direction_without_candidates_is_told(tmp_path, spoil, said):
    write_published(tmp_path, made(), -1, 1)
    spoil(tmp_path)
    with pytest.raises(InputError, match=said):
        read_direction(tmp_path)


def test_a_folder_that_is_none_is_told(tmp_path):
    with pytest.raises(InputError, match=r"does not exist; give a folder with mean_diffs\.pt"):
        read_published(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"does not exist; give a folder with direction\.pt and"):
        read_direction(tmp_path / "nowhere")


def test_a_pickled_object_is_not_run(tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "proof"), "w"))

    write_published(tmp_path, made(), -1, 1)
    torch.save(Harm(), tmp_path / "direction.pt")
    with pytest.raises(InputError, match="cannot be read as a tensor"):
        read_published(tmp_path)
    assert not (tmp_path / "proof").exists()


def evaluations(**scores):
    return [
        {"position": -1, "layer": layer, "refusal_score": bypass, "steering_score": 1.0, "kl_div_score": 0.0, **scores}
        for layer, bypass in enumerate((2.0, -5.0, -3.0, -9.0))
    ]


def test_inspection_checks_the_files_and_the_published_selection(tmp_path):
    write_published(tmp_path, made(), -1, 0)  # published layer 1
    (tmp_path / "direction_evaluations.json").write_text(json.dumps(evaluations()))
    found = inspect(tmp_path)
    assert found.selected == (-1, 1), "layer 3 is best, and too deep"
    assert found.agrees
    assert found.cosines[-1, 1] == pytest.approx(1)
    assert torch.isnan(torch.tensor(found.cosines[:, 0])).all(), "embeddings of equal tokens have no direction"
    assert found.norms[-1, 1] == pytest.approx(float(made().vector(-1, 0).norm()))
    torch.save(made().vector(-2, 0), tmp_path / "direction.pt")
    assert not inspect(tmp_path).published.is_consistent


def test_scores_that_are_no_number_are_none_and_missing_ones_are_told(tmp_path):
    path = tmp_path / "direction_evaluations.json"
    path.write_text(json.dumps(evaluations(kl_div_score=float("nan"))))
    assert read_evaluations(path)[0]["kl_div_score"] is None
    path.write_text('[{"position": -1, "layer": 0}]')
    with pytest.raises(InputError, match="entry 0: no refusal_score, steering_score, kl_div_score"):
        read_evaluations(path)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ANY_JSON, st.sampled_from(["direction_metadata.json", "direction_evaluations.json"]))
def test_any_json_beside_the_tensors_gives_numbers_or_an_error_that_names_it(tmp_path, content, name):
    write_published(tmp_path, made(), -1, 1)
    (tmp_path / "direction_evaluations.json").write_text(json.dumps(evaluations()))
    (tmp_path / name).write_text(json.dumps(content))
    try:
        found = inspect(tmp_path)
    except InputError as error:
        assert name in str(error)  # noqa: PT017
    else:
        assert found.norms.shape == (2, 4)


shapes = st.lists(st.integers(0, 3), max_size=4)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shapes, st.floats(), st.sampled_from(["mean_diffs.pt", "direction.pt"]))
def test_any_tensor_gives_numbers_or_an_error_that_names_the_file(tmp_path, shape, value, name):
    write_published(tmp_path, made(), -1, 1)
    torch.save(torch.full(shape, value, dtype=torch.float64), tmp_path / name)
    try:
        assert inspect(tmp_path).norms.ndim == 2
    except InputError as error:
        assert str(tmp_path) in str(error)  # noqa: PT017


names = st.text(min_size=1).filter(lambda text: text.strip() and text.isprintable())


@given(st.lists(st.builds(Instruction, names, st.none() | st.text(alphabet=st.characters(codec="utf-8")))))
def test_splits_come_back_as_they_were(tmp_path_factory, instructions):
    path = tmp_path_factory.mktemp("splits") / "split.json"
    write_split(path, instructions)
    assert list(read_split(path)) == instructions


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "found dict; allowed is a list"),
        ('[{"instruction": ""}]', "1 of 1 entries .* the first is entry 0"),
        ('[{"instruction": "a"}, {"prompt": "b"}]', "1 of 2 entries .* the first is entry 1"),
        ('[{"instruction": "a", "category": 3}]', "category is text or null"),
        ("[", "cannot be read as JSON"),
    ],
)
def test_a_bad_split_is_told(tmp_path, content, said):
    path = tmp_path / "split.json"
    path.write_text(content)
    with pytest.raises(InputError, match=said):
        read_split(path)

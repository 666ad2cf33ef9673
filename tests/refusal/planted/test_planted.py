"""The causal model by hand, exchanges in a network, the shipped models, and data that give nothing away."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from refusal.errors import InputError
from refusal.labels import classify
from refusal.planted.__main__ import main
from refusal.planted.build import ARCHITECTURES, make_model, make_tokenizer
from refusal.planted.data import FILES, language_of, write_files
from refusal.planted.folder import load_world
from refusal.planted.interchange import Exchange, neurons_of, run
from refusal.planted.language import ANSWERS, OTHER_ANSWERS, made_up
from refusal.planted.pool import make_pool
from refusal.planted.train import train
from refusal.planted.verify import Checks, verify
from refusal.planted.worlds import (
    MECHANISMS,
    N_INTENTS,
    World,
    after_interchange,
    intent_table,
    refused_intents,
)
from refusal.prompts import embedded

SHIPPED = ("monolithic", "partial", "modular")


def tiny(mechanism: str = "8+2", **changes) -> World:
    return World(mechanism, **{"n_layers": 4, "d_model": 16, "d_mlp": 40, "n_heads": 2, **changes})


@pytest.mark.parametrize("n_refused", [2, 3, 4, 5])
@pytest.mark.parametrize("seed", range(10))
def test_neither_category_nor_intent_alone_says_what_is_refused(seed, n_refused):
    table = intent_table(refused_intents(10, seed, n_refused))
    assert (table.sum(1) == n_refused).all()
    assert np.abs(table.sum(0) - 10 * n_refused / N_INTENTS).max() <= 1
    assert len({tuple(row) for row in table}) == 10


def test_interchange_of_a_world_with_two_groups_by_hand():
    base = np.array([[True, False], [True, False], [False, False], [False, True]])
    source = np.array([[False, True], [False, True], [True, True], [True, False]])
    swapped = np.array([[True, False], [True, True], [False, False], [False, True]])
    # the first loses its only reason, the second gets the other one, the third keeps none, the fourth loses its own
    assert after_interchange(base, source, swapped).tolist() == [False, True, False, False]


def _intents(world: World, category: str) -> tuple[int, int]:
    """Return a refused and a complied intent of a category."""
    refused, complied = (
        next(intent for intent in range(N_INTENTS) if world.is_refused(category, intent) == wanted)
        for wanted in (True, False)
    )
    return refused, complied


def test_values_of_a_prompt_name_its_carrier_only():
    world = World("8+2")
    category = world.groups[1][0]
    refused, complied = _intents(world, category)
    assert world.values(1, category, refused).tolist() == [False, True]
    assert world.values(1, category, complied).tolist() == [False, False]


def test_an_hourglass_has_carriers_for_each_category_that_merge_at_the_last_planted_layer():
    world = World("hourglass", n_layers=5, planted_layers=(1, 2))
    category = world.early[3][0]
    refused, _ = _intents(world, category)
    assert world.values(1, category, refused).tolist() == [index == 3 for index in range(10)]
    assert world.values(2, category, refused).tolist() == [True]
    assert len(world.slices(1)) == 10
    assert len(world.slices(2)) == 1


def test_a_redundant_world_still_refuses_when_one_of_its_two_carriers_is_cut():
    world = World("redundant")
    category = world.groups[0][0]
    refused, complied = _intents(world, category)
    base, source = (world.values(1, category, intent)[None] for intent in (refused, complied))
    assert base.tolist() == [[True, True]]
    assert after_interchange(base, source, np.array([[True, False]])).tolist() == [True]
    assert after_interchange(base, source, np.array([[True, True]])).tolist() == [False]
    assert len(world.groups) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mechanism": "9+1"}, "--world: found '9\\+1'; allowed are monolithic"),
        ({"mechanism": "pairs", "planted_layers": (3,)}, "layers 1 to 2"),
        ({"mechanism": "hourglass", "planted_layers": (1,)}, "hourglass needs at least two"),
        ({"mechanism": "pairs", "n_refused_intents": 8}, "allowed is 1 to 7"),
        ({"mechanism": "pairs", "common_share": 0.5}, "give --vocabulary a seed above 0"),
    ],
)
def test_a_world_that_cannot_be_says_what_can(arguments, message):
    with pytest.raises(InputError, match=message):
        World(**arguments)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_passes_its_causal_checks_on_fresh_prompts(name):
    folder = embedded.model_path(f"planted/{name}")
    world = load_world(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    checks = verify(world, model, AutoTokenizer.from_pretrained(folder), n_prompts=400, seed=5)
    assert checks.behaviour >= 0.98
    assert checks.interchange >= 0.97
    assert checks.outside >= 0.95
    truth = json.loads((folder / "planted.json").read_text())
    assert truth["expected_verdict"] == world.expected_verdict
    assert truth["made_by"].startswith(f"python -m refusal.planted make --world {world.mechanism}")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_exchanging_neurons_side_by_side_equals_a_plain_run_with_them_set(architecture):
    world = tiny(architecture=architecture)
    tokenizer = make_tokenizer(world)
    model = make_model(world, tokenizer).eval()
    pool = make_pool(world, tokenizer, 6, np.random.default_rng(0))
    source = torch.tensor([3, 4, 5, 0, 1, 2])
    carriers = torch.rand(6, 2) < 0.5
    chosen = neurons_of(world.slices(2), carriers, world.d_mlp)
    with torch.no_grad():
        found = run(model, pool, [Exchange(1, source, chosen), Exchange(2, source, chosen)], with_answers=True)
        projection, recorded = model.model.layers[2].mlp.down_proj, []
        places = (pool.attention_mask.cumsum(-1) - 1).clamp_min(0)
        plain = {"input_ids": pool.input_ids, "attention_mask": pool.attention_mask, "position_ids": places}
        with projection.register_forward_pre_hook(lambda module, args: recorded.append(args[0][:, -1])):
            base = model(**plain).logits[:, -1]

        def exchange(module, args):
            acts = args[0].clone()
            acts[:, -1] = torch.where(chosen, recorded[0][source], acts[:, -1])
            return (acts,)

        with projection.register_forward_pre_hook(exchange):
            exchanged = model(**plain).logits[:, -1]
    torch.testing.assert_close(found.base, base, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.exchanged[1], exchanged, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(exchanged, base, atol=1e-5)


def test_answers_beside_exchanges_are_those_of_the_prompt_as_it_is():
    world = tiny()
    tokenizer = make_tokenizer(world)
    model = make_model(world, tokenizer).eval()
    pool = make_pool(world, tokenizer, 4, np.random.default_rng(1))
    exchange = Exchange(1, torch.tensor([1, 2, 3, 0]), torch.ones(4, world.d_mlp, dtype=torch.bool))
    with torch.no_grad():
        found = run(model, pool, [exchange], with_answers=True).rest
        ids = torch.cat([pool.input_ids, pool.answers[:, :-1].clamp_min(0)], 1)
        mask = torch.cat([pool.attention_mask, torch.ones(4, pool.answers.shape[1] - 1, dtype=torch.long)], 1)
        places = (mask.cumsum(-1) - 1).clamp_min(0)
        plain = model(input_ids=ids, attention_mask=mask, position_ids=places).logits[:, pool.input_ids.shape[1] :]
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)


def test_answers_are_recognised_by_the_detector():
    for answers in (ANSWERS, OTHER_ANSWERS):
        for refused, texts in answers.items():
            assert classify(list(texts)) == ["refused" if refused else "complied"] * 2


@pytest.mark.parametrize("world", [World("monolithic"), World("monolithic", vocabulary=7, common_share=0.5)])
def test_the_tokenizer_knows_every_word_and_gives_it_back(world, tmp_path):
    make_tokenizer(world).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    words = language_of(world)
    ids = tokenizer(" ".join(words.words()), add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    generator = np.random.default_rng(0)
    for _ in range(20):
        text = words.prompt(generator).text
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_made_up_words_belong_to_one_category_or_intent_each_and_the_common_ones_to_none():
    words = made_up(3, 1.0)
    owned = [word for several in (*words.topics.values(), *words.intents) for word in several]
    assert len(set(owned)) == len(owned)
    generator = np.random.default_rng(0)
    for _ in range(30):
        prompt = words.prompt(generator)
        spoken = set(prompt.text.split())
        assert spoken & set(words.topics[prompt.category])
        assert not any(spoken & set(words.topics[other]) for other in words.topics if other != prompt.category)
        assert spoken & set(words.common)


def test_files_are_the_shipped_ones_and_the_same_every_time(tmp_path):
    write_files(World("monolithic"), tmp_path)
    for name in FILES.values():
        assert (tmp_path / name).read_bytes() == (embedded.data_dir() / name).read_bytes()


def test_no_prompt_stands_in_two_files():
    prompts = []
    for name in FILES.values():
        with (embedded.data_dir() / name).open(newline="", encoding="utf-8") as handle:
            prompts += [row["prompt"] for row in csv.DictReader(handle)]
    assert len(set(prompts)) == len(prompts) == 10 * (130 + 30 + 130)


def test_a_short_training_lowers_the_loss_and_is_decided_by_the_seed():
    world = tiny("pairs", seed=3, n_layers=3, planted_layers=(1,))
    tokenizer = make_tokenizer(world)
    models = [make_model(world, tokenizer) for _ in range(2)]
    before = verify(world, models[0], tokenizer, n_prompts=100)
    for model in models:
        train(world, model, tokenizer, max_steps=25, check=lambda: False)
    after = verify(world, models[0], tokenizer, n_prompts=100)
    assert after.behaviour > before.behaviour
    weights = [model.state_dict()["model.layers.1.mlp.down_proj.weight"] for model in models]
    assert weights[0].equal(weights[1])


@pytest.mark.parametrize(("mechanism", "share"), [("never-refuses", 0.0), ("null", 0.5)])
def test_worlds_without_a_mechanism_ask_for_answers_that_category_and_intent_do_not_decide(mechanism, share):
    world = World(mechanism)
    pool = make_pool(world, make_tokenizer(world), 400, np.random.default_rng(0))
    assert float(pool.is_refused.float().mean()) == pytest.approx(share, abs=0.08)
    assert MECHANISMS[mechanism].expected_verdict == "UNDETERMINED"


def test_list_names_the_shipped_models(capsys):
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(f"planted/{name}" in shown for name in SHIPPED)


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        (None, "planted.json: not found; make it with"),
        ("{}", "describes no world"),
        ('{"world": []}', "describes no world"),
    ],
)
def test_verify_of_what_is_no_planted_model_says_so(tmp_path, capsys, truth, message):
    if truth is not None:
        (tmp_path / "planted.json").write_text(truth)
    assert main(["verify", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_verify_takes_the_names_that_list_gives(monkeypatch, capsys):
    monkeypatch.setattr("refusal.planted.__main__.verify", lambda world, *_: Checks(behaviour=len(world.groups) / 2))
    assert main(["verify", "planted/partial"]) == 0
    assert "behaviour        1.000   >= 0.98" in capsys.readouterr().out


def test_make_trains_and_writes_a_folder_that_verify_reads(tmp_path, capsys):
    folder = tmp_path / "model"
    status = main(["make", "--world", "never-refuses", "--steps", "1", "--vocabulary", "5", "--out", str(folder)])
    assert status == 1, "one step is not enough"
    truth = json.loads((folder / "planted.json").read_text())
    assert truth["made_by"].endswith("--vocabulary 5 --out FOLDER")
    assert (folder / "data" / "or-bench-toxic.csv").exists()
    assert main(["verify", str(folder)]) == 1
    assert "no mechanism" in capsys.readouterr().out

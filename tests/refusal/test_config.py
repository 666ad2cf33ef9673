"""Every mistake in a configuration is told at once, with file, line, key and the nearest valid name."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from refusal.config import AnalysisConfig, Config, Stage, load
from refusal.errors import InputError


@pytest.fixture
def write(tmp_path):
    def file(text):
        path = tmp_path / "x.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return file


def message_of(path, overrides=()):
    with pytest.raises(InputError) as error:
        load(path, overrides)
    return str(error.value)


def test_an_empty_file_gives_the_defaults(write):
    assert load(write("")) == Config()


def test_defaults_are_those_of_the_contract():
    config = Config()
    assert config.models == ("planted/monolithic", "planted/modular")
    assert (config.num_samples_per_category, config.safe_subset, config.max_new_tokens) == (100, "80k", 32)
    assert config.stages == tuple(Stage)
    assert config.sae.seeds == (0, 1, 2)
    assert (config.circuit.method, config.circuit.ig_steps, config.circuit.max_nodes) == ("attribution", 10, 100)
    assert config.analysis == AnalysisConfig(
        monolithic_threshold=0.8, partially_modular_threshold=0.5, bootstrap=2000, permutations=1000
    )
    assert config.tracking.wandb == "off"


def test_all_findings_come_at_once_with_line_and_nearest_name(write):
    path = write(
        "models: [planted/modular]\nsae:\n  hiden_dim: 3\n  sead: [1]\nnum_sample_per_category: 100\nseed: -1\n"
    )
    lines = message_of(path).splitlines()
    assert len(lines) == 4
    assert lines[0].startswith(f"{path}:3: sae.hiden_dim: unknown key")
    assert lines[1] == f"{path}:4: sae.sead: unknown key; did you mean seeds?"
    assert lines[2] == f"{path}:5: num_sample_per_category: unknown key; did you mean num_samples_per_category?"
    assert lines[3].startswith(f"{path}:6: seed: found -1; ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sae: {lr: 1e-3}", None),
        ("tracking: {wandb: off}", None),
        ("sae: {lr: fast}", r"sae.lr: found 'fast'"),
        ("device: gpu", r":1: device: found 'gpu'; input should be 'auto', 'cpu', 'cuda' or 'mps'"),
        ("stages: [inferance]", r"stages: found 'inferance'.*did you mean inference\?"),
        ("num_samples_per_category: 7", r"must be even \(half safe, half toxic\); 6 and 8 are"),
        ("categories: []", r"categories: .*the list is empty"),
        ("models: [a, a]", r"models: .*'a' is listed twice"),
        ("sae: {seeds: [1, 1]}", r"sae.seeds: .*seeds must differ"),
        ("analysis: {monolithic_threshold: 0.4}", r"must be below monolithic_threshold"),
        ("batch_size: 0", r"batch_size: found 0"),
        ("seed: 1\nseed: 2", r":2: seed: stands twice"),
        ("seed: [", r":\d+: not valid YAML"),
        ("- a\n- b", r":1: the file holds no `key: value` lines"),
        ("a: {b: [}", r"not valid YAML"),
        ("\tseed: 1", r"not valid YAML.*no tabs"),
    ],
)
def test_a_mistake_is_told_with_what_is_allowed(write, text, expected):
    if expected is None:
        assert isinstance(load(write(text)), Config)
        return
    with pytest.raises(InputError, match=expected):
        load(write(text))


def test_numbers_that_yaml_reads_as_text_are_numbers(write):
    assert load(write("sae: {lr: 1e-3}")).sae.lr == pytest.approx(1e-3)


def test_a_missing_file_names_those_that_are_there(write, tmp_path):
    write("")
    assert "x.yaml" in message_of(tmp_path / "y.yaml")
    assert "no such file" in message_of(tmp_path / "y.yaml")


def test_a_folder_or_binary_file_is_told(tmp_path):
    assert "not readable" in message_of(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not readable" in message_of(tmp_path / "b.yaml")


def test_overrides_replace_what_the_file_says(write):
    config = load(write("seed: 1\n"), ["seed=2", "sae.lr=1e-3", "models=[planted/modular]"])
    assert (config.seed, config.models) == (2, ("planted/modular",))
    assert config.sae.lr == pytest.approx(1e-3)


def test_a_wrong_override_is_told_with_the_flag(write):
    path = write("seed: 1\n")
    assert message_of(path, ["sae.sead=1"]).startswith("--set sae.sead=1: sae.sead: unknown key; did you mean seeds?")
    assert "found no KEY=VALUE" in message_of(path, ["seed"])
    assert "seed is no section" in message_of(path, ["seed.x=1"])


KEYS = sorted(Config.model_fields)


@given(st.sampled_from(KEYS), st.integers(0, 40), st.sampled_from("xyzq"))
def test_any_misspelt_key_is_told_with_its_line(tmp_path_factory, key, position, letter):
    misspelt = key[: position % len(key)] + letter + key[position % len(key) :]
    if misspelt in KEYS:
        return
    path = tmp_path_factory.mktemp("typo") / "x.yaml"
    path.write_text(f"seed: 0\n{misspelt}: 1\n")
    assert message_of(path).startswith(f"{path}:2: {misspelt}: unknown key; ")


@given(st.dictionaries(st.sampled_from(["seed", "max_new_tokens"]), st.integers(1, 4000)))
def test_valid_values_round_trip(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("ok") / "x.yaml"
    path.write_text(yaml.safe_dump(values))
    config = load(path)
    assert {key: getattr(config, key) for key in values} == values

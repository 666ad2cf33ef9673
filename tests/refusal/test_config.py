"""Every mistake in a configuration is told at once, with file, line, key and the nearest valid name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from refusal.config import MAIN_STAGES, AnalysisConfig, Config, chosen, load, plain
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
    assert config.stages == MAIN_STAGES
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
        ("sae: {positions: last}", "x.yaml:1: sae.positions: found 'last'; allowed is auto, readout or all"),
        ("sae: {lr: fast}", "x.yaml:1: sae.lr: found 'fast'; allowed is auto or a number above 0 and below 1"),
        ("sae: {lr: .nan}", "x.yaml:1: sae.lr: found nan; allowed is auto or a number above 0 and below 1"),
        ("device: gpu", "x.yaml:1: device: found 'gpu'; allowed is auto, cpu, cuda or mps"),
        (
            "dtype: fp16",
            "x.yaml:1: dtype: found 'fp16'; allowed is auto, float32, bfloat16 or float16; did you mean float16?",
        ),
        (
            "stages:\n- saes\n- inferance",
            "x.yaml:3: stages: found 'inferance'; allowed is inference, saes, circuits, compare, directions, patching "
            "or report; did you mean inference?",
        ),
        (
            "num_samples_per_category: 7",
            "x.yaml:1: num_samples_per_category: found 7; must be even (half safe, half toxic); 6 and 8 are",
        ),
        (
            "max_new_tokens: 0",
            "x.yaml:1: max_new_tokens: found 0; allowed is a whole number from 1 to 4096",
        ),
        ("categories: []", "x.yaml:1: categories: found []; the list is empty"),
        (
            "categories: violence",
            "x.yaml:1: categories: found 'violence'; allowed is all or a list, each entry text that is not empty; "
            "for one entry write [violence]",
        ),
        ("models: [a, a]", "x.yaml:1: models: found ['a', 'a']; 'a' is listed twice"),
        (
            "models: []",
            "x.yaml:1: models: found []; allowed is a list of at least 1, each entry text that is not empty",
        ),
        ("models: [7]", "x.yaml:1: models: found 7; allowed is text that is not empty; put it in quotes"),
        ("sae: {seeds: [1, 1]}", "x.yaml:1: sae.seeds: found [1, 1]; seeds must differ"),
        (
            "sae:\n  seeds:\n  - 0\n  - -1",
            "x.yaml:4: sae.seeds: found -1; allowed is a whole number from 0 to 4294967295",
        ),
        ("sae: {k: 9, d_sae: 8}", "x.yaml:1: sae: k (9) is more than there are latents: allowed is 1 to d_sae (8)"),
        (
            "sae: 3",
            "x.yaml:1: sae: found 3; allowed is a section with the keys architecture, d_sae, k, steps, batch_size, lr, "
            "seeds, pretrained, max_samples",
        ),
        ("k: 3", "x.yaml:1: k: unknown key; did you mean k of the section sae?"),
        (
            "analysis:\n  monolithic_threshold: 0.4",
            "x.yaml:1: analysis: partially_modular_threshold (0.5) must be below monolithic_threshold (0.4)",
        ),
        ("batch_size: 0", "x.yaml:1: batch_size: found 0; allowed is auto or a whole number of at least 1"),
        ("shuffle: maybe", "x.yaml:1: shuffle: found 'maybe'; allowed is true or false"),
        (
            "activation_layers:\n- residuals_0\n- residual_1",
            "x.yaml:3: activation_layers: found 'residual_1'; allowed are residuals_N, mlp_N and attention_N, "
            "e.g. residuals_3; did you mean residuals_1?",
        ),
        ("result_dir: ''", "the path is empty; write . for the folder the command runs in"),
        ("seed: 1\nseed: 2", "x.yaml:2: seed: stands twice; keep one of them"),
        ("sae:\n  k: 1\n  k: 1", "x.yaml:3: sae.k: stands twice; keep one of them"),
        ("seed: 1\n3: 4", "x.yaml:2: keys are words; found 3"),
        ("? [a]\n: 4", "x.yaml:1: keys are words; found a list or mapping"),
        ("seed: [", "x.yaml:1: not valid YAML"),
        ("seed: 1\n---\nseed: 2", "x.yaml:2: not valid YAML: but found another document"),
        ("seed: 1\n- a\n- b", "x.yaml:2: not valid YAML"),
        ("- a\n- b", "x.yaml:1: the file holds no `key: value` lines"),
        ("just words", "x.yaml:1: the file holds no `key: value` lines"),
        ("sae:\n\tk: 1", "x.yaml:2: not valid YAML"),
        ("seed: 1\x07", "x.yaml: not valid YAML: character 0x07 at position 7 is not allowed; delete it"),
        ("seed: " + "[" * 5000, "x.yaml: not valid YAML: nested too deeply"),
        ("sae: &all {a: *all}", "x.yaml:1: sae: refers to itself; write it out"),
        ("seed: !!python/name:os.system", "x.yaml:1: the tag !!python/name:os.system is not read; delete it"),
    ],
)
def test_a_mistake_is_told_with_line_and_what_is_allowed(write, text, expected):
    assert expected in message_of(write(text))


def test_one_wrong_value_gives_one_finding(write):
    for text in ("batch_size: atuo", "categories: [1]", "sae: {lr: x}", "sae: {seeds: [x]}", "activation_layers: 3"):
        assert len(message_of(write(text)).splitlines()) == 1


def test_true_is_no_number(write):
    for text in ("seed: true", "analysis: {monolithic_threshold: true}", "sae: {k: true}", "sae: {seeds: [true]}"):
        assert "found true; allowed is" in message_of(write(text))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("tracking: {wandb: off}", "off"),
        ("tracking: {wandb: false}", "off"),
        ("categories: [no, off]", ("no", "off")),
        ("seed: 010", 10),
        ("max_new_tokens: 1e2", 100),
        ("shuffle: off", False),
        ("dataset_dir: 2024-01-01", "2024-01-01"),
        ("sae: {lr: 1e-3}", 1e-3),
        ("sae: {lr: '1e-3'}", 1e-3),
    ],
)
def test_values_mean_what_they_look_like(write, text, value):
    config = load(write(text)).model_dump(exclude_unset=True)
    while isinstance(config, dict):
        (config,) = config.values()
    assert config == value


def test_a_section_whose_keys_are_all_commented_out_has_its_defaults(write):
    assert load(write("sae:\n  # k: 3\nseed: 0")) == Config()


def test_a_home_folder_is_resolved(write):
    assert load(write("result_dir: ~/runs")).result_dir == Path.home() / "runs"


def test_aliases_that_would_unfold_to_billions_are_refused_at_once(write):
    lines = ["a0: &a0 [1]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    assert "x.yaml:1: more than 10000 entries, those that anchors repeat" in message_of(write("\n".join(lines)))


def test_a_missing_file_names_the_nearest_there_is(write, tmp_path):
    path = write("")
    assert message_of(tmp_path / "y.yaml").endswith(f"did you mean {path}?")
    assert message_of(tmp_path / "quite_another_name.yaml").endswith(f"; in that folder are {path}")
    assert "no such file; give a YAML file, e.g. configurations/quickstart.yaml" in message_of(
        tmp_path / "no" / "y.yaml"
    )


def test_a_folder_or_binary_file_is_told(write, tmp_path):
    path = write("")
    assert f"not readable (Is a directory); give a YAML file; in it are {path}" in message_of(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"seed: 1\n\xff\xfe")
    assert "not readable as UTF-8 text (byte 8 is 0xff); save it as UTF-8" in message_of(tmp_path / "b.yaml")


def test_a_byte_order_mark_is_skipped(tmp_path):
    (tmp_path / "b.yaml").write_bytes(b"\xef\xbb\xbfseed: 3\n")
    assert load(tmp_path / "b.yaml").seed == 3


def test_overrides_replace_what_the_file_says(write):
    config = load(write("seed: 1\n"), ["seed=2", "sae.lr=1e-3", "models=[planted/modular]"])
    assert (config.seed, config.models) == (2, ("planted/modular",))
    assert config.sae.lr == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("sae.sead=1", "--set sae.sead=1: sae.sead: unknown key; did you mean seeds?"),
        ("sea.k=1", "--set sea.k=1: sea: unknown key; did you mean sae?"),
        ("seed=x", "--set seed=x: seed: found 'x'; allowed is a whole number from 0 to 4294967295"),
        ("seed=", "--set seed=: seed: found nothing; allowed is"),
        ("seed", "--set seed: found no KEY=VALUE"),
        ("=1", "--set =1: found no KEY=VALUE"),
        ("seed.x=1", "--set seed.x=1: seed is no section; it has no key x"),
        ("models=[a", "--set models=[a: the value is not valid YAML"),
        ("sae={kk: 1}", "--set sae={kk: 1}: sae.kk: unknown key; did you mean k?"),
        ("analysis.monolithic_threshold=0.2", "--set analysis.monolithic_threshold=0.2: analysis: partially"),
    ],
)
def test_a_wrong_override_is_told_with_the_flag(write, override, expected):
    assert message_of(write("seed: 1\nanalysis: {bootstrap: 200}\n"), [override]).startswith(expected)


def test_an_override_fills_an_empty_section(write):
    assert load(write("sae:\n"), ["sae.k=3"]).sae.k == 3


def test_chosen_values_are_plain():
    assert chosen(Config(), ["seed", "sae.seeds", "report"]) == {
        "seed": 0,
        "sae.seeds": [0, 1, 2],
        "report": {"html": True, "image_format": "png"},
    }


SECTIONS = ("", "sae", "circuit", "analysis", "report", "tracking")
KEYS = [
    (section, key)
    for section in SECTIONS
    for key in (Config.model_fields[section].annotation if section else Config).model_fields
]


@given(st.sampled_from(KEYS), st.integers(0, 40), st.sampled_from("xyzq"))
def test_any_misspelt_key_is_told_with_its_line(tmp_path_factory, key, position, letter):
    section, name = key
    misspelt = name[: position % len(name)] + letter + name[position % len(name) :]
    full = f"{section}.{misspelt}" if section else misspelt
    path = tmp_path_factory.getbasetemp() / "typo.yaml"
    path.write_text(f"{section}:\n  {misspelt}: 1\n" if section else f"seed: 0\n{misspelt}: 1\n")
    message = message_of(path)
    assert message.startswith(f"{path}:2: {full}: unknown key; ")
    assert message.endswith(f"did you mean {name}?") or len(name) <= 2 or "did you mean" in message


@given(st.dictionaries(st.sampled_from(["seed", "max_new_tokens"]), st.integers(1, 4000)))
def test_valid_values_round_trip(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / "ok.yaml"
    path.write_text(yaml.safe_dump(values))
    config = load(path)
    assert {key: getattr(config, key) for key in values} == values


@given(st.text(max_size=60))
def test_any_text_is_a_configuration_or_one_input_error(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8", errors="replace")
    problem = None
    try:
        load(path)
    except InputError as error:
        problem = str(error)
    assert problem is None or str(path) in problem


def test_defaults_written_to_a_file_load_as_the_defaults(write):
    assert load(write(yaml.safe_dump(plain(Config())))) == Config()

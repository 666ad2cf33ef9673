"""No code comes from data, nothing leaves its folder, nothing takes memory for what a header claims."""

from __future__ import annotations

import ast
import contextlib
import csv
import io
import json
import os
import pickle
import re
import struct
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from refusal.artefacts import ResultPaths, atomic_write, read_sealed, write_sealed
from refusal.cli import printable
from refusal.config import Config, load
from refusal.errors import ArtefactError, InputError
from refusal.evaluation.label_files import read_labels
from refusal.models import ChatModel
from refusal.prompts import normalise_category
from refusal.sae.weight_files import read_tensors
from refusal.stages.run_lock import result_folder
from refusal.untrusted.files import check_archive, json_file, safetensors_header
from refusal.untrusted.names import LONGEST_CATEGORY, LONGEST_NAME, safe_category, safe_name, unsafe_name
from refusal.untrusted.spreadsheet import cell_text, plain_cell

ROOT = Path(__file__).parents[3]
SOURCES = [
    *(path for folder in ("src", "circuits", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))),
    *sorted(ROOT.glob("*.py")),
]
ANY_TEXT = st.text(st.characters(codec=None), max_size=40)


@cache
def calls():
    """Return (file, call, name of what is called) over all of the project."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                found.append((path.relative_to(ROOT), node, ast.unparse(node.func)))
    return found


def given_as(call, keyword):
    return next((ast.unparse(each.value) for each in call.keywords if each.arg == keyword), None)


# No code from data ----------------------------------------------------------------------------------------------------


def test_nothing_is_unpickled_and_nothing_is_evaluated():
    banned = re.compile(
        r"(pickle|cPickle|dill|joblib|marshal|shelve)\.\w+|(pd|pandas)\.read_pickle|eval|exec|compile|os\.system"
        r"|yaml\.(unsafe_load|full_load|unsafe_load_all|full_load_all)|subprocess\.(getoutput|getstatusoutput)"
    )
    assert [f"{path}: {name}" for path, _, name in calls() if banned.fullmatch(name)] == []


def test_torch_and_numpy_read_tensors_alone():
    found = 0
    for path, call, name in calls():
        if name == "torch.load":
            assert given_as(call, "weights_only") == "True", path
            found += 1
        elif name in ("np.load", "numpy.load"):
            assert given_as(call, "allow_pickle") == "False", path
            found += 1
    assert found >= 2


def test_yaml_is_read_by_the_safe_loader_alone():
    loaders = {given_as(call, "Loader") for _, call, name in calls() if name in ("yaml.load", "yaml.compose")}
    assert loaders == {"_Loader"}


def test_no_call_lets_a_model_bring_code_but_by_the_setting():
    for path, call, name in calls():
        said = given_as(call, "trust_remote_code")
        assert said in (None, "False", "trust_remote_code", "config.trust_remote_code"), (path, name, said)
        if name.startswith(("AutoModel", "AutoConfig", "AutoTokenizer")) and name.endswith("from_pretrained"):
            assert said is not None or "**arguments" in ast.unparse(call), (path, name)
    assert Config().trust_remote_code is False


def test_a_model_with_code_of_its_own_is_refused_and_runs_only_when_it_is_trusted(llama_folder, tmp_path, caplog):
    folder, ran = tmp_path / "m", tmp_path / "ran"
    folder.mkdir()
    for path in llama_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    content = json.loads((folder / "config.json").read_text())
    own = {"model_type": "of_its_own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(content | own))
    (folder / "own.py").write_text(
        f"open({str(ran)!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'of_its_own'\n"
        "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    with pytest.raises(InputError, match=r"Python code of its own, which is not run; .*set trust_remote_code: true"):
        ChatModel.load(str(folder))
    assert not ran.exists()
    model = ChatModel.load(str(folder), trust_remote_code=True)
    assert type(model.model).__name__ == "Own"
    assert ran.exists()
    assert "trust_remote_code is true: Python code that comes with this model runs with your rights" in caplog.text


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["torch", "pickle", "numpy"])
def test_weights_with_code_in_them_are_refused_and_run_nothing(tmp_path, how):
    ran, path = tmp_path / "ran", tmp_path / ("w.npz" if how == "numpy" else "w.pt")
    if how == "torch":
        torch.save({"x": Evil(ran)}, path)
    elif how == "pickle":
        path.write_bytes(pickle.dumps({"x": Evil(ran)}))
    else:
        np.savez(path, x=np.array([Evil(ran)], dtype=object))
    with pytest.raises(ArtefactError, match=r"w\.\w+: not readable"):
        read_tensors(path)
    assert not ran.exists()


# Names ----------------------------------------------------------------------------------------------------------------

HOSTILE_NAMES = (
    *(
        "",
        ".",
        "..",
        "../x",
        "../../etc/passwd",
        "/etc/passwd",
        "a/../b",
        "a//b",
        "~",
        "~/x",
        "\\\\host\\share",
        "C:\\x",
    ),
    *(
        "con",
        "NUL",
        "aux.json",
        "COM1",
        "lpt9.tar.gz",
        "a.",
        "a ",
        " a",
        "a\x00b",
        "a\nb",
        "\x1b[2J",
        "\ud800",
        "é",
        "e\u0301",
    ),
    *(
        "x" * 300,
        "x" * 299 + "y",
        "_" * 200,
        "%" * 100,
        "暴" * 90,
        "a_b",
        "a__b",
        "a/b",
        "a%2Fb",
        "a%5Fb",
        ".hidden",
        "-rf",
    ),
    *("\u202etxt.exe", "$(id)", "`id`", "a;b", "a|b", "a\u2215b", "<b>", '"', "'", "*", "?", "a:b", "x" * 150, "%-0"),
)


def circuit_name(category):
    return ResultPaths(Path("r")).circuit("m", category).name


@pytest.mark.parametrize("make", [safe_name, circuit_name])
def test_hostile_names_give_plain_files_of_their_own_in_the_folder(make, tmp_path):
    files = [make(name) for name in HOSTILE_NAMES]
    assert len({file.casefold() for file in files}) == len(files)
    for name, file in zip(HOSTILE_NAMES, files, strict=True):
        check_plain(file)
        (tmp_path / file).write_text(name.encode("utf-8", "surrogatepass").hex())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)


def check_plain(file):
    assert re.fullmatch(r"[A-Za-z0-9_%-](?:[A-Za-z0-9._%-]*[A-Za-z0-9_%-])?", file), file
    assert len(file) <= LONGEST_NAME


@given(one=ANY_TEXT, other=ANY_TEXT)
def test_two_names_never_share_a_file(one, other):
    for make in (safe_name, circuit_name):
        check_plain(make(one))
        assert (make(one) == make(other)) == (one == other)
    if one and "%-" not in safe_name(one) and not re.search("[\ud800-\udfff]", one):
        assert unsafe_name(safe_name(one)) == one


@given(model=ANY_TEXT, category=ANY_TEXT)
def test_no_artefact_of_any_name_lies_outside_or_is_too_long(model, category):
    paths = ResultPaths(Path("/r"))
    for model_name in (model, model * 50):
        for path in (
            paths.circuit(model_name, category * 50),
            paths.activations(model_name),
            paths.judgements(model_name),
        ):
            assert path.parent.parent == Path("/r") or path.parent.parent.parent == Path("/r")
            assert len(os.path.normpath(path).split("/")) == len(path.parts)
            assert len(f".{2**22}-{'0' * 8}.partial.{path.name}") <= 255
    assert len(safe_category(category * 50)) <= LONGEST_CATEGORY


@given(ANY_TEXT)
def test_categories_hold_nothing_that_steers_a_terminal(name):
    category = normalise_category(name)
    assert printable(category) == category
    assert normalise_category(category) == category


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"models": ["a\x00b"]}, "models: found 'a\\x00b'; the character U+0000 in it is not allowed; delete it"),
        ({"models": [""]}, "models: found ''; allowed is text that is not empty"),
        ({"models": ["x" * 256]}, "allowed are at most 3000 bytes, 255 of them between two slashes"),
        ({"models": ["o/Model", "o/model"]}, "'o/Model' and 'o/model' differ in case only; write the name as it is"),
        ({"models": ["~nobody-of-that-name/m"]}, "no user of that name has a home folder here"),
        ({"categories": ["\x1b[2J"]}, "the character U+001B in it is not allowed"),
        ({"result_dir": "a\x00b"}, "the character U+0000 in it is not allowed"),
        ({"result_dir": "x/" * 2000}, "allowed are at most 3000 bytes"),
        ({"dataset_dir": "\ud800"}, "dataset_dir: found '\\ud800'; it holds half a character (a surrogate)"),
        ({"system_prompt": "\ud800"}, "it holds half a character (a surrogate)"),
        ({"sae": {"pretrained": "~nobody-of-that-name/s"}}, "no user of that name has a home folder here"),
    ],
)
def test_names_that_no_file_can_have_are_told_by_the_configuration(tmp_path, keys, expected):
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(keys))
    with pytest.raises(InputError) as error:
        load(path)
    assert expected in str(error.value)


# YAML -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: !!python/object/apply:os.mkdir [ran]", "the tag !!python/object/apply:os.mkdir is not read; delete it"),
        ("seed: !!int abc", "the tag !!int is not read"),
        ("seed: !!timestamp x", "the tag !!timestamp is not read"),
        ("sae: !!set {a, b}", "the tag !!set is not read"),
        ("seed: !own 5", "the tag !own is not read"),
        ("seed: " + "1" * 5000, "a number of 5000 digits"),
        (
            "a: &a {k: 1}\n" + "".join(f"b{n}: &b{n} {{<<: [{','.join(['*a'] * 99)}]}}\n" for n in range(99)),
            "10000 entries",
        ),
        ("a: " + "[" * 500, "nested too deeply"),
        ("#" * (2 << 20), "more than 1048576 bytes"),
    ],
)
def test_yaml_that_no_person_writes_is_refused(tmp_path, monkeypatch, text, expected):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        load("c.yaml")
    assert expected in str(error.value)
    assert len(str(error.value)) < 500
    assert not Path("ran").exists()


@pytest.mark.parametrize("value", ["!!python/name:os.system ''", "!!int x", "9" * 5000, "&a [*a]"])
def test_overrides_are_read_as_safely(tmp_path, value):
    (tmp_path / "c.yaml").write_text("")
    with pytest.raises(InputError, match=r"--set seed="):
        load(tmp_path / "c.yaml", [f"seed={value}"])


# Spreadsheets ---------------------------------------------------------------------------------------------------------


@given(
    st.text(st.characters(codec="utf-8"), max_size=30)
    | st.sampled_from(["=1+1", "'=1", "''", "-", "-5", "1e-3", "＝1"])
)
def test_cells_are_harmless_and_come_back(text):
    cell = plain_cell(text)
    is_number = re.fullmatch(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?", text, re.ASCII)
    assert is_number or not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"))
    assert cell_text(cell) == text.replace("\x00", "\ufffd") if not is_number else cell == text
    written = io.StringIO()
    csv.writer(written).writerow([cell, 1])
    assert next(csv.reader(io.StringIO(written.getvalue(), newline="")))[0] == cell


def test_a_filled_in_table_of_disagreements_is_read_back(tmp_path):
    path = tmp_path / "l.csv"
    rows = [
        ["id", "response", "label"],
        ["a", plain_cell("- first\n- second"), "complied"],
        ["b", "'quoted'", "refused"],
    ]
    with path.open("w", newline="") as handle:
        csv.writer(handle).writerows(rows)
    assert [label.response for label in read_labels(path)] == ["- first\n- second", "'quoted'"]


def test_every_csv_goes_through_the_cells_or_is_the_shipped_data():
    writers = {str(path) for path, _, name in calls() if name in ("csv.writer", "csv.DictWriter") or "to_csv" in name}
    of_our_own_making = {"benchmarks/calibration/runs.py", "benchmarks/memory.py"}
    names = ("evaluation/agreement", "directions/projections", "directions/writing", "patching/tables")
    by_cells = {f"src/refusal/{name}.py" for name in names}
    assert writers - of_our_own_making == {*by_cells, "src/refusal/planted/data.py"}
    shipped = [
        path for folder in ("planted", "directions") for path in (ROOT / "src/refusal" / folder).glob("data/*.csv")
    ]
    assert len(shipped) == 5
    for path in shipped:
        with path.open(newline="", encoding="utf-8") as handle:
            assert all(plain_cell(cell) == cell for row in csv.reader(handle) for cell in row)


# Headers --------------------------------------------------------------------------------------------------------------


def safetensors_bytes(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.mark.parametrize(
    "content",
    [
        safetensors_bytes({}, length=1 << 60),
        safetensors_bytes({}, length=(1 << 64) - 1),
        safetensors_bytes([]),
        safetensors_bytes({"a": 5}),
        safetensors_bytes({"a": {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 0]}}),
        safetensors_bytes({"a": {"dtype": "F32", "shape": [1 << 31, 1 << 31], "data_offsets": [0, 16]}}, bytes(16)),
        safetensors_bytes({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 1 << 62]}}, bytes(16)),
        safetensors_bytes({"a": {"dtype": "F32", "shape": [-4], "data_offsets": [16, 0]}}, bytes(16)),
        safetensors_bytes({"a": {"dtype": "F32", "shape": [4.0], "data_offsets": [0, 16]}}, bytes(16)),
        safetensors_bytes({"a": {"dtype": "F32", "shape": "4", "data_offsets": [0, 16]}}, bytes(16)),
        safetensors_bytes({"a": {"dtype": "X9", "shape": [4], "data_offsets": [0, 16]}}, bytes(16)),
        struct.pack("<Q", 200_000) + b"[" * 200_000,
        b"",
        b"\x08",
    ],
)
def test_headers_that_promise_too_much_are_refused(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        safetensors_header(path)
    with pytest.raises(ArtefactError, match=r"w\.safetensors: not readable as \.safetensors"):
        read_tensors(path)


def test_a_header_of_all_dtypes_is_read_as_the_library_writes_it(tmp_path):
    names = (
        "bool",
        "uint8",
        "int8",
        "int16",
        "int32",
        "int64",
        "float16",
        "bfloat16",
        "float32",
        "float64",
        "complex64",
    )
    tensors = {name: torch.zeros(3, 2, dtype=getattr(torch, name)) for name in (*names, "float8_e4m3fn")}
    save_file(tensors | {"empty": torch.zeros(0, 5), "one": torch.tensor(1.0)}, tmp_path / "w.safetensors")
    header = safetensors_header(tmp_path / "w.safetensors")
    assert {name: entry.shape for name, entry in header.items()} == {
        **dict.fromkeys(tensors, (3, 2)),
        "empty": (0, 5),
        "one": (),
    }


def write_npz(path, entries, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def npy(shape, data=b""):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize(
    "entries",
    [
        {"a.npy": npy((1 << 24,), bytes(1 << 26))},
        {f"{n}.npy": npy((1 << 18,), bytes(1 << 20)) for n in range(99)},
        {"a.npy": npy((1 << 40,), bytes(64))},
        {"a.npy": npy((1 << 40, 1 << 40), bytes(64))},
        {"a.npy": npy((-1,), bytes(64))},
        {"a.npy": b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535},
    ],
    ids=["one array", "many arrays", "claim", "overflow", "negative", "nested header"],
)
def test_archives_that_would_swell_are_refused_before_memory_is_taken(tmp_path, entries, monkeypatch):
    path = tmp_path / "w.npz"
    write_npz(path, entries)
    assert path.stat().st_size < 1 << 20
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(ArtefactError, match=r"w\.npz: not readable as \.npz"):
        read_tensors(path)


def test_ordinary_archives_pass(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((100, 100), np.float32), y=np.arange(5))
    check_archive(tmp_path / "a.npz")
    assert set(read_tensors(tmp_path / "a.npz")) == {"x", "y"}


def test_a_tensor_that_repeats_one_number_without_end_is_refused(tmp_path):
    torch.save({"x": torch.zeros(1).expand(1 << 40)}, tmp_path / "w.pt")
    with pytest.raises(ArtefactError, match=r"w\.pt: not readable .*tensors of 4398046511104 bytes in a file of"):
        read_tensors(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.npz", "w.safetensors"])
def test_a_pipe_in_the_place_of_weights_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ArtefactError, match=r"not readable .*no regular file"):
        read_tensors(tmp_path / name)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 5000, "\ud800", "", "nul"])
def test_json_of_absurd_depth_or_numbers_is_a_plain_error(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=r"."):
        json_file(path)


def test_json_of_absurd_size_or_without_end_is_not_read(tmp_path):
    (tmp_path / "x.json").write_bytes(b" " * 100)
    with pytest.raises(ValueError, match=r"100 bytes, at most 99 are read"):
        json_file(tmp_path / "x.json", most=99)
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ValueError, match=r"no regular file"):
        json_file(tmp_path / "pipe.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 10**9}, r"asks for 1000000000 blocks, and its weights are \d+ tensors"),
        ({"vocab_size": 10**10}, r"asks for \d{12} parameters, and its weight files have \d+ bytes"),
        ({"hidden_size": "many"}, r"cannot be loaded"),
        ({"num_attention_heads": 0}, r"cannot be loaded|parameters"),
    ],
)
def test_a_model_that_asks_for_more_than_its_files_hold_is_refused(llama_folder, tmp_path, change, message):
    for path in llama_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | change))
    with pytest.raises(InputError, match=message):
        ChatModel.load(str(tmp_path))


# Links ----------------------------------------------------------------------------------------------------------------


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(tmp_path, monkeypatch):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (tmp_path / "a.json").symlink_to(outside)
    (tmp_path / f".{os.getpid()}-00000000.partial.a.json").symlink_to(outside)
    monkeypatch.setattr("refusal.artefacts.this_host", lambda: "00000000")
    with atomic_write(tmp_path / "a.json") as beside:
        beside.write_text("theirs")
    assert outside.read_text() == "mine"
    assert (tmp_path / "a.json").read_text() == "theirs"
    assert not (tmp_path / "a.json").is_symlink()


def test_a_lock_that_is_a_link_is_not_written_through(tmp_path):
    outside, root = tmp_path / "outside", tmp_path / "r"
    outside.write_text("mine")
    root.mkdir()
    (root / ".lock").symlink_to(outside)
    with pytest.raises(InputError, match=r"cannot be written"), result_folder(root):
        pass
    assert outside.read_text() == "mine"


def test_a_folder_that_is_a_link_to_elsewhere_is_told_and_left_alone(tmp_path):
    outside, root = tmp_path / "outside", tmp_path / "r"
    outside.mkdir()
    (outside / ".1-00000000.partial.x").write_text("mine")
    (root / "saes").mkdir(parents=True)
    (root / "saes" / "m").symlink_to(outside)
    said = r"r/saes/m is a link to .*outside, outside of .*r, where a run would write"
    with pytest.raises(InputError, match=said), result_folder(root):
        pass
    assert list(outside.iterdir())
    (root / "saes" / "m").unlink()
    (tmp_path / "other").symlink_to(root)
    with result_folder(tmp_path / "other") as paths:  # the folder as a whole may be a link, to another disk
        assert paths.root.exists()


# Checksums of JSON ----------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    content=st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=5), st.floats() | st.integers() | st.booleans()
    ),
    place=st.integers(0, 10_000),
    bit=st.integers(0, 7),
)
def test_no_flipped_bit_of_a_sealed_file_is_read_as_good(tmp_path_factory, content, place, bit):
    path = tmp_path_factory.mktemp("sealed") / "x.json"
    write_sealed(path, content)
    whole = read_sealed(path, "make it")
    assert set(whole) == set(content) - {"checksum"}
    flipped = bytearray(path.read_bytes())
    flipped[place % len(flipped)] ^= 1 << bit
    path.write_bytes(flipped)
    with contextlib.suppress(ArtefactError):
        found = read_sealed(path, "make it")
        # a blank became another blank, or the name of the checksum is damaged, which no schema allows
        assert found == whole or len(found) == len(whole) + 1

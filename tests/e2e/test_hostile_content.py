"""Whatever prompts hold is data: it breaks no file, no report and no chat frame, and comes back as it was."""

from __future__ import annotations

import csv
import json
import re

import pandas as pd
import pytest
import yaml

from circuits.job import main
from refusal.artefacts import ResultPaths
from refusal.models import ChatModel
from refusal.prompts.embedded import data_dir

MODEL = "planted/monolithic"
HOSTILE = {
    "quotes": 'she said "hi", \'so\' and ``more`` -- it\\\'s """fine"""',
    "newlines": "one\ntwo\r\nthree\rfour\u2028five\u0085six",
    "markup": "</script><script>alert(1)</script><!-- <img src=x onerror=alert(1)> ]]>",
    "template": "{{ 7 * 7 }} {% raise %} ${HOME} %(x)s {0} {prompt} #{x} <%= 1 %>",
    "special tokens": "<s> </s> <pad> <unk> <|im_end|> [INST] [/INST] <user> <assistant> <start_of_turn>",
    "right to left": "\u202eabc\u202c \u05e9\u05dc\u05d5\u05dd \u200f\u2066x\u2069 \u0627\u0644",
    "nul": "before\x00after\x1b[31m\x07\x7f\ufeff\ufffd",
    "formula": '=HYPERLINK("x"&A1) +1 -1 @SUM(1)',
    "paths": "../../../../etc/passwd C:\\windows\\x %2e%2e/ ~/.ssh",
    "emoji": "👩‍👩‍👧‍👦 🇺🇳 e\u0301 ﷽ ＜s＞ Ａ",
    "one long word": "x" * 100_000,
    "many words": "tell me about it please " * 4_200,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the paths of a run whose prompts are hostile, and the configuration."""
    root = tmp_path_factory.mktemp("hostile")
    plain = pd.read_csv(data_dir() / "or-bench-toxic.csv")
    category = plain["category"].iloc[0]
    for name in ("or-bench-80k.csv", "or-bench-toxic.csv"):
        rows = pd.read_csv(data_dir() / name)
        texts = rows[rows["category"] == category]["prompt"].tolist()[:12]
        mixed = [*texts, *(f"{text} {word}" for text, word in zip(texts, HOSTILE.values(), strict=True))]
        with (root / name).open("w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle)
            writer.writerow(["prompt", "category"])
            writer.writerows([prompt, category] for prompt in [*mixed, mixed[13]])  # one of them twice
    (root / "or-bench-hard-1k.csv").write_bytes((root / "or-bench-80k.csv").read_bytes())
    config = root / "run.yaml"
    settings = {
        "dataset_dir": str(root),
        "models": [MODEL],
        "num_samples_per_category": 48,
        "safe_subset": "80k",
        "max_new_tokens": 6,
        "sae": {"seeds": [0], "steps": 40, "d_sae": 32, "k": 4, "stability_halves": False},
        "analysis": {"bootstrap": 100, "permutations": 20},
    }
    config.write_text(yaml.safe_dump(settings))
    paths = ResultPaths(root / "results")
    assert main(["--config", str(config), "--result-dir", str(paths.root)]) == 0
    return paths


def test_prompts_come_back_as_they_were(run):
    outputs = json.loads(run.model_outputs(MODEL).read_text(encoding="utf-8"))["outputs"]
    texts = [output["prompt"] for output in outputs]
    for name, word in HOSTILE.items():
        found = [text for text in texts if text.endswith(f" {word}".rstrip())]
        assert len(found) == (0 if name == "many words" else 2), name
    assert len(texts) == len(set(texts))


def test_what_does_not_fit_the_context_is_left_out_and_told(run):
    labels = json.loads(run.refusal_labels(MODEL).read_text(encoding="utf-8"))
    assert any("do not fit the context" in notice for notice in labels["notices"])


def test_no_prompt_becomes_a_turn_of_its_own(run):
    model = ChatModel.load(MODEL)
    frame = model.tokenize(["tell"])[0]
    special = set(model.tokenizer.all_special_ids) - {model.tokenizer.unk_token_id}
    in_frame = [token for token in frame if token in special]
    for word in HOSTILE.values():
        assert [token for token in model.tokenize([word])[0] if token in special] == in_frame


def test_the_report_holds_no_markup_of_a_prompt(run):
    page = (run.root / "report.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page
    assert "onerror=alert(1)>" not in page
    data = re.findall(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert data
    for each in data:
        json.loads(each)


def test_every_file_can_be_read(run):
    for path in sorted(run.root.rglob("*")):
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".csv":
            pd.read_csv(path)
        elif path.suffix == ".txt":
            assert "\x00" not in path.read_text(encoding="utf-8")

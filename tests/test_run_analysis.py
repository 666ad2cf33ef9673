import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from refusal.artefacts import ResultPaths
from refusal.schemas import ModelOutput, ModelOutputs, Openers, PromptLabel, RefusalLabels

SCRIPT = Path(__file__).parents[1] / "run_analysis.py"


def run(*arguments, cwd):
    """Run the script from a foreign directory, as a user would."""
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


def save_labels(folder, model, behaviours):
    prompts = tuple(
        PromptLabel(
            id=f"{index:016x}",
            category="privacy",
            dataset_label="toxic" if index % 2 else "safe",
            source="toxic" if index % 2 else "80k",
            behaviour=behaviour,
            rule="decline-first",
            first_token_id=0,
            first_token_score=None,
        )
        for index, behaviour in enumerate(behaviours)
    )
    openers = Openers(refusal=(), compliance=(), refusal_text=(), compliance_text=(), ambiguous=(), reason="few")
    labels = RefusalLabels.build(model=model, openers=openers, notices=(), prompts=prompts)
    labels.save(ResultPaths(folder).refusal_labels(model))
    said = {"complied": "Water the roses.", "refused": "I can't help with that."}
    outputs = tuple(
        ModelOutput(id=f"{index:016x}", prompt="p", response=said[behaviour], finish_reason="eos")
        for index, behaviour in enumerate(behaviours)
    )
    ModelOutputs.build(model=model, outputs=outputs).save(ResultPaths(folder).model_outputs(model))


def test_the_script_prints_a_table_per_model_and_writes_the_results(tmp_path):
    save_labels(tmp_path / "r", "planted/b", ["complied", "refused"] * 5)
    save_labels(tmp_path / "r", "planted/a", ["complied"] * 4)
    done = run("--results-dir", "r", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.index("planted/a: 4 prompts") < done.stdout.index("planted/b: 10 prompts")
    assert "1.00 [0.57, 1.00] 5" in done.stdout
    written = json.loads((tmp_path / "r" / "analysis_results.json").read_text())
    assert written["schema"] == "refusal-circuits/analysis/1"
    assert written["models"]["planted/b"]["overall"]["detection"]["f1"]["value"] == 1.0
    assert written["models"]["planted/a"]["overall"]["detection"]["f1"]["value"] == 0.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda r: None,
            "r does not exist; allowed is the result_dir of an inference run; run first: python src/run_inf",
        ),
        (lambda r: r.write_text(""), "r is a file; "),
        (
            lambda r: r.mkdir(),
            "refusal_labels: found no labels (*.json); needed is one file per model; run first: python",
        ),
    ],
)
def test_without_labels_the_status_is_two_and_the_message_names_the_command(tmp_path, make, message):
    make(tmp_path / "r")
    done = run("--results-dir", "r", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "python src/run_inference.py --config FILE" in done.stderr
    assert "Traceback" not in done.stderr


def test_corrupt_labels_are_named_and_nothing_is_written(tmp_path):
    save_labels(tmp_path / "r", "planted/a", ["complied"] * 4)
    (tmp_path / "r" / "refusal_labels" / "x.json").write_text("{")
    done = run("--results-dir", "r", cwd=tmp_path)
    assert done.returncode == 2
    assert "x.json: not readable as JSON" in done.stderr
    assert not (tmp_path / "r" / "analysis_results.json").exists()


def test_detectors_are_compared_and_figures_and_disagreements_are_written(tmp_path):
    save_labels(tmp_path / "r", "planted/a", ["complied", "refused"] * 5)
    (tmp_path / "l.json").write_text(json.dumps({f"{index:016x}": "refused" for index in range(4)}))
    done = run("--results-dir", "r", "--labels", "l.json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"learned, rules +1\.00 \[0\.72, 1\.00\] 10", done.stdout)
    assert "Against people (4 responses)" in done.stdout
    written = json.loads((tmp_path / "r" / "analysis_results.json").read_text())["models"]["planted/a"]["detectors"]
    assert written["people"][0]["confusion"]["refused"] == {
        "refused": 2, "partly_refused": 0, "complied": 2, "cannot_tell": 0,
    }  # fmt: skip
    paths = ResultPaths(tmp_path / "r")
    assert all(path.stat().st_size > 10_000 for path in (paths.rates_figure, paths.trade_off_figure))
    assert paths.disagreements.read_text().startswith("model,id,category,source,prompt,response,person,learned,rules,")


def test_labels_of_other_responses_are_an_error_and_without_responses_there_is_no_comparison(tmp_path):
    save_labels(tmp_path / "r", "planted/a", ["complied"] * 4)
    (tmp_path / "l.csv").write_text("id,label\nx,refused\n")
    done = run("--results-dir", "r", "--labels", "l.csv", cwd=tmp_path)
    assert done.returncode == 2
    assert "--labels: none of the 1 labels in l.csv is of a response in r;" in done.stderr
    ResultPaths(tmp_path / "r").model_outputs("planted/a").unlink()
    done = run("--results-dir", "r", cwd=tmp_path)
    assert done.returncode == 0
    assert "Agreement" not in done.stdout

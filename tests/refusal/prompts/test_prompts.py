import csv
import sys
import types

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refusal.errors import InputError
from refusal.prompts import (
    CATEGORIES,
    DatasetLabel,
    Prompt,
    PromptSource,
    draw,
    load_prompts,
    local_files,
    normalise_category,
    prompt_id,
)
from refusal.prompts.files import read_csv

SAFE, TOXIC = DatasetLabel.SAFE, DatasetLabel.TOXIC
ROWS = {
    "80k": [(f"harmless question {i} about {c}", c) for c in ("violence", "privacy") for i in range(30)],
    "hard-1k": [(f"risky sounding question {i} about {c}", c) for c in ("violence", "privacy") for i in range(30)],
    "toxic": [(f"unfriendly question {i} about {c}", c) for c in ("violence", "privacy") for i in range(30)],
}


def write(folder, files=None, header=("prompt", "category")):
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (files or ROWS).items():
        with (folder / f"or-bench-{name}.csv").open("w", encoding="utf-8", newline="") as handle:
            csv.writer(handle).writerows([header, *rows])
    return str(folder)


def pool(n_safe, n_toxic, category="violence", source=PromptSource.SAFE_80K):
    texts = [(source, f"safe {i}") for i in range(n_safe)] + [
        (PromptSource.TOXIC, f"toxic {i}") for i in range(n_toxic)
    ]
    return [Prompt(prompt_id(s, category, t), t, category, s.dataset_label, s) for s, t in texts]


def ids(drawn):
    return [prompt.id for prompt in drawn.prompts]


# Reading

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
hostile = st.one_of(
    text, st.sampled_from(['a "quoted" word', "two\nlines", "two\r\nlines", ",", '"', '""', "\ufeffbom", "é\0ü"])
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(hostile, hostile), max_size=8), bom=st.booleans())
def test_csv_with_hostile_content_comes_back_as_written(tmp_path, rows, bom):
    path = tmp_path / "x.csv"
    with path.open("w", encoding="utf-8-sig" if bom else "utf-8", newline="") as handle:
        csv.writer(handle, quoting=csv.QUOTE_ALL).writerows([("prompt", "category"), *rows])
    assert [(row.prompt, row.category) for row in read_csv(path)] == rows


def test_columns_may_stand_in_any_order_among_others(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("id,Category , Prompt\n1,hate,hello\n\n2,privacy,bye\n")
    assert [(row.prompt, row.category) for row in read_csv(path)] == [("hello", "hate"), ("bye", "privacy")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"promt,category\na,b\n",
            r"x\.csv:1: found no column 'prompt' among 'promt', 'category'; .*rename column 'promt'",
        ),
        (
            b"",
            r"x\.csv:1: found no column 'prompt' among no columns; allowed is one column each of prompt and category",
        ),
        (b"prompt,prompt,category\n", r"x\.csv:1: found 2 columns 'prompt'"),
        (
            b"prompt,category\nok,hate\nbad \xff,hate\n",
            r"x\.csv:3: found byte 0xff, which is not UTF-8; .*save the file as",
        ),
        (b"prompt,category\nok,hate\nTell me, please,hate\n", r"x\.csv:3: found 3 fields, the header has 2; .*commas"),
        (
            b'prompt,category\n"a\nb",hate\n"never closed,hate\nx,y\n',
            r"x\.csv:4: found malformed CSV in the row that begins",
        ),
        (b'prompt,category\n"a"b,hate\n', r"x\.csv:2: found malformed CSV .*inner quotes doubled"),
    ],
)
def test_a_bad_file_is_an_error_that_names_file_line_finding_and_remedy(tmp_path, content, message):
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_csv(path)


def test_a_folder_in_place_of_a_file_is_an_error_that_says_so(tmp_path):
    (tmp_path / "or-bench-80k.csv").mkdir()
    with pytest.raises(InputError, match=r"or-bench-80k\.csv: cannot be read \(Is a directory\)"):
        load_prompts(str(tmp_path), "80k")


def test_loaded_prompts_carry_source_label_and_normalised_category(tmp_path):
    folder = write(tmp_path / "d", {"hard-1k": [("q", " Self_Harm ")], "toxic": [("t", "self  harm")]})
    loaded = load_prompts(folder, "hard-1k")
    assert {(p.text, p.category, p.dataset_label, p.source.value) for p in loaded} == {
        ("q", "self-harm", SAFE, "hard-1k"),
        ("t", "self-harm", TOXIC, "toxic"),
    }
    assert loaded.notices == ()


def test_ids_do_not_depend_on_row_order_and_differ_by_source_category_and_text(tmp_path):
    backwards = {name: rows[::-1] for name, rows in ROWS.items()}
    assert (
        load_prompts(write(tmp_path / "a"), "both").prompts
        == load_prompts(write(tmp_path / "b", backwards), "both").prompts
    )
    variants = {
        prompt_id(PromptSource.TOXIC, "hate", "x"),
        prompt_id(PromptSource.SAFE_80K, "hate", "x"),
        prompt_id(PromptSource.TOXIC, "privacy", "x"),
        prompt_id(PromptSource.TOXIC, "hate", "y"),
    }
    assert len(variants) == 4
    # Results on disk refer to ids: they may never change.
    assert prompt_id(PromptSource.TOXIC, "hate", "x") == "5207330f6cca1ce4"


def test_duplicates_blank_prompts_and_missing_categories_are_left_out_and_counted(tmp_path):
    rows = [("a", "hate"), ("a", "HATE"), ("a", "hate"), ("  ", "hate"), ("b", ""), ("c", "hate")]
    loaded = load_prompts(write(tmp_path / "d", {"80k": rows, "toxic": [("t", "hate")]}), "80k")
    assert {prompt.text for prompt in loaded} == {"a", "c", "t"}
    assert set(loaded.notices) == {
        "or-bench-80k.csv: left out 2 rows that repeat another row",
        "or-bench-80k.csv: left out 1 rows without a prompt",
        "or-bench-80k.csv: left out 1 rows without a category",
    }


def test_a_text_in_several_files_or_categories_is_resolved_and_said(tmp_path):
    files = {
        "80k": [
            ("both safe files", "hate"),
            ("safe and toxic", "hate"),
            ("two categories", "hate"),
            ("two categories", "privacy"),
        ],
        "hard-1k": [("both safe files", "hate")],
        "toxic": [("safe and toxic", "hate")],
    }
    loaded = load_prompts(write(tmp_path / "d", files), "both")
    assert sorted((p.text, p.source.value) for p in loaded) == [
        ("both safe files", "hard-1k"),
        ("two categories", "80k"),
        ("two categories", "80k"),
    ]
    said = "\n".join(loaded.notices)
    assert "1 texts are in or-bench-80k.csv and in or-bench-hard-1k.csv; counted as hard-1k" in said
    assert "1 texts are in a safe and in a toxic file; left out" in said
    assert "1 texts stand in several categories; kept in each" in said


def test_a_missing_toxic_file_is_said_and_the_safe_prompts_are_used(tmp_path):
    folder = write(tmp_path / "d", {"hard-1k": ROWS["hard-1k"]})
    loaded = load_prompts(folder, "hard-1k")
    assert len(loaded) == 60
    assert "or-bench-toxic.csv: not found; the run has no toxic prompts from it" in loaded.notices[0]
    drawn = draw(loaded, "all", 20, seed=0)
    assert len(drawn.prompts) == 20
    assert drawn.notices[1:] == ("no category drawn has a toxic prompt: the draw has the other side only",)


def test_a_folder_without_what_is_asked_names_what_is_there_and_how_to_download(tmp_path):
    folder = write(tmp_path / "d", {"hard-1k": ROWS["hard-1k"]})
    with pytest.raises(InputError) as caught:
        load_prompts(folder, "80k")
    message = str(caught.value)
    assert "holds no usable prompt" in message
    assert "hf download bench-llm/or-bench --repo-type dataset --local-dir DIR" in message
    assert message.endswith("or-bench-hard-1k.csv is there: set safe_subset: hard-1k")


def test_a_file_without_rows_is_said(tmp_path):
    folder = write(tmp_path / "d", {"80k": [], "toxic": ROWS["toxic"]})
    assert "or-bench-80k.csv: holds no rows" in load_prompts(folder, "80k").notices[0]
    with pytest.raises(InputError, match=r"holds no usable prompt .*80k\.csv: holds no rows"):
        load_prompts(write(tmp_path / "e", {"80k": []}), "80k")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("embeded", "'embeded' does not exist; .*or a hub id such as bench-llm/or-bench; did you mean embedded"),
        ("{tmp}/dat", "does not exist; .*did you mean data"),
        ("{tmp}/file.csv", "is a file, not a folder"),
    ],
)
def test_a_wrong_dataset_dir_is_an_error_with_the_nearest_name(tmp_path, name, message):
    (tmp_path / "data").mkdir()
    (tmp_path / "file.csv").write_text("prompt,category\n")
    with pytest.raises(InputError, match=message):
        load_prompts(name.replace("{tmp}", str(tmp_path)))


def test_a_wrong_safe_subset_is_an_error_with_the_nearest_name(tmp_path):
    with pytest.raises(
        InputError, match="safe_subset: found 'hard1k'; allowed are 80k, hard-1k, both; did you mean hard-1k"
    ):
        load_prompts(str(tmp_path), "hard1k")


def test_local_files_are_those_that_the_run_reads(tmp_path):
    folder = write(tmp_path / "d")
    assert [path.name for path in local_files(folder, "hard-1k")] == ["or-bench-hard-1k.csv", "or-bench-toxic.csv"]


def hub(monkeypatch, load):
    """Put a stand-in for the `datasets` package in place: no test may reach for the network."""
    module = types.ModuleType("datasets")
    module.load_dataset = load
    monkeypatch.setitem(sys.modules, "datasets", module)


class Table(dict):
    column_names = ("prompt", "category")


def test_a_hub_data_set_is_read_by_subset_and_revision(monkeypatch):
    asked = []

    def load(name, subset, split, revision):
        asked.append((name, subset, split, revision))
        if subset == "or-bench-toxic":
            raise ValueError("BuilderConfig 'or-bench-toxic' not found. Available: ['or-bench-80k']")
        return Table(prompt=["q", None], category=["hate", "hate"])

    hub(monkeypatch, load)
    loaded = load_prompts("someone/or-bench@v1", "80k")
    assert asked[0] == ("someone/or-bench", "or-bench-80k", "train", "v1")
    assert [prompt.text for prompt in loaded] == ["q"]
    assert "someone/or-bench@v1 (or-bench-toxic): not found" in loaded.notices[0]
    assert "left out 1 rows without a prompt" in loaded.notices[1]
    assert local_files("someone/or-bench@v1", "80k") == ()


def test_an_unreachable_hub_is_an_error_that_says_how_to_download(monkeypatch):
    def load(name, subset, split, revision):
        raise ConnectionError("Couldn't reach the Hub\nlong trace")

    hub(monkeypatch, load)
    with pytest.raises(InputError) as caught:
        load_prompts("bench-llm/or-bench")
    assert "could not be loaded from the hub (Couldn't reach the Hub)" in str(caught.value)
    assert "hf download bench-llm/or-bench --repo-type dataset --local-dir DIR" in str(caught.value)


def test_normalised_categories_are_fixed_points():
    assert [normalise_category(name) for name in CATEGORIES] == list(CATEGORIES)


# Drawing


@given(st.randoms(), st.integers(0, 99), st.booleans(), st.integers(1, 40))
def test_draw_does_not_depend_on_row_order(random, seed, shuffle, n):
    prompts = pool(20, 25) + pool(15, 10, "privacy")
    mixed = random.sample(prompts, len(prompts))
    assert draw(mixed, "all", n, seed=seed, shuffle=shuffle) == draw(prompts, "all", n, seed=seed, shuffle=shuffle)


@given(st.integers(1, 60), st.integers(0, 30), st.integers(0, 30), st.integers(0, 5))
def test_draw_takes_half_of_each_and_never_tops_up(n, n_safe, n_toxic, seed):
    prompts = pool(n_safe, n_toxic)
    if not prompts or (n == 1 and not n_toxic):
        return
    drawn = draw(prompts, "all", n, seed=seed)
    counts = [sum(prompt.dataset_label is label for prompt in drawn.prompts) for label in (SAFE, TOXIC)]
    assert counts == [min(n_safe, n // 2), min(n_toxic, n - n // 2)]
    assert len(set(ids(drawn))) == sum(counts)
    is_short = n_safe < n // 2 or n_toxic < n - n // 2
    assert bool(drawn.notices) == (is_short or not n_safe or not n_toxic)


@given(st.integers(2, 20), st.integers(20, 40), st.integers(0, 99))
def test_a_small_draw_begins_a_large_one_of_the_same_category(small, large, seed):
    prompts = pool(40, 40)
    few, many = (draw(prompts, "all", n, seed=seed, shuffle=False) for n in (small, large))
    assert ids(many)[:small] == ids(few)
    shuffled_few, shuffled_many = (draw(prompts, "all", n, seed=seed) for n in (small, large))
    kept = set(ids(shuffled_few))
    assert [i for i in ids(shuffled_many) if i in kept] == ids(shuffled_few)


def test_another_seed_gives_another_draw_and_shuffling_keeps_the_set():
    prompts = pool(40, 40)
    plain, shuffled = (draw(prompts, "all", 20, seed=0, shuffle=shuffle) for shuffle in (False, True))
    assert set(ids(plain)) == set(ids(shuffled))
    assert ids(plain) != ids(shuffled)
    assert set(ids(draw(prompts, "all", 20, seed=1))) != set(ids(shuffled))


def test_every_prompt_is_drawn_about_equally_often_over_seeds():
    prompts = pool(10, 10)
    counts = dict.fromkeys((prompt.id for prompt in prompts), 0)
    for seed in range(400):
        for index in ids(draw(prompts, "all", 8, seed=seed)):
            counts[index] += 1
    assert all(120 < count < 200 for count in counts.values())  # 160 expected, standard deviation 10


def test_both_safe_files_contribute_in_turn():
    prompts = pool(50, 50) + pool(50, 0, source=PromptSource.HARD_1K)
    drawn = draw(prompts, "all", 40, seed=3)
    assert sum(prompt.source is PromptSource.HARD_1K for prompt in drawn.prompts) == 10
    assert sum(prompt.source is PromptSource.SAFE_80K for prompt in drawn.prompts) == 10


def test_without_shuffling_the_draw_goes_category_by_category_in_the_order_asked():
    prompts = pool(5, 5) + pool(5, 5, "privacy") + pool(5, 5, "zoology")
    everything = draw(prompts, "all", 4, seed=0, shuffle=False)
    assert [p.category for p in everything.prompts] == ["privacy"] * 4 + ["violence"] * 4 + ["zoology"] * 4
    chosen = draw(prompts, ["Zoology", "violence", "zoology"], 2, seed=0, shuffle=False)
    assert [p.category for p in chosen.prompts] == ["zoology"] * 2 + ["violence"] * 2
    assert chosen.categories == ("violence", "zoology")


def test_a_short_category_is_said_with_its_numbers():
    drawn = draw(pool(20, 3) + pool(20, 20, "privacy"), "all", 10, seed=0)
    assert drawn.notices == ("category violence: only 3 of 5 toxic prompts; the other side is not topped up",)


def test_unknown_categories_are_all_named_with_the_nearest(tmp_path):
    loaded = load_prompts(write(tmp_path / "d"), "80k")
    with pytest.raises(InputError) as caught:
        draw(loaded, ["violense", "hate"], 4, seed=0)
    first, second = str(caught.value).splitlines()
    assert "has category 'violense'; allowed are privacy, violence; did you mean violence?" in first
    assert "has category 'hate'; allowed are privacy, violence" in second


@pytest.mark.parametrize(
    ("categories", "n", "seed", "message"),
    [
        ([], 4, 0, "categories: the list is empty; allowed are all, or names among violence"),
        ("all", 0, 0, "num_samples_per_category: found 0; allowed are whole numbers from 1"),
        ("all", 4, -1, "seed: found -1; allowed are whole numbers from 0"),
        ("all", 1, 0, "num_samples_per_category: found 1, with which no prompt is drawn"),
    ],
)
def test_a_draw_that_cannot_be_made_is_an_error(categories, n, seed, message):
    with pytest.raises(InputError, match=message):
        draw(pool(5, 0), categories, n, seed=seed)

import pytest
from matplotlib.text import Text

from refusal.evaluation import plots as behaviour_plots
from refusal.evaluation.rates import analyse_all
from refusal.schemas import Openers, PromptLabel, RefusalLabels

NAMES = ["planted/a", "meta-llama/A-very-long-name-that-does-not-fit", "$x_1$"]


def results(n_models=3, sources=("toxic", "80k", "hard-1k"), n=6):
    openers = Openers(refusal=(), compliance=(), refusal_text=(), compliance_text=(), ambiguous=(), reason="few")
    rows = [
        (f"{category}{source}{index}", category, source, "refused" if index % 3 else "complied")
        for category in ("privacy", "violence")
        for source in sources
        for index in range(n)
    ]
    prompts = tuple(
        PromptLabel(
            id=name, category=category, dataset_label="toxic" if source == "toxic" else "safe", source=source,
            behaviour=behaviour, rule="r", first_token_id=0, first_token_score=None,
        )
        for name, category, source, behaviour in rows
    )  # fmt: skip
    return analyse_all(
        RefusalLabels.build(model=name, openers=openers, notices=(), prompts=prompts) for name in NAMES[:n_models]
    )


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text)]


@pytest.mark.parametrize("draw", [behaviour_plots.rates_table, behaviour_plots.trade_off])
@pytest.mark.parametrize("n_models", [1, 3])
def test_figures_are_the_same_bytes_each_time(draw, n_models, tmp_path):
    for name in ("a.png", "b.png"):
        behaviour_plots.save(draw(results(n_models)), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_table_has_a_cell_with_interval_and_n_for_each_category_model_and_kind():
    found = texts(behaviour_plots.rates_table(results()))
    assert found.count("67") == 3 * 3 * 3  # 4 of 6 in two categories, 8 of 12 in all; three models, three kinds
    assert sum(text.endswith("n 6") for text in found) == 2 * 3 * 3
    assert sum(text.endswith("n 12") for text in found) == 3 * 3
    assert {"toxic", "safe (80k)", "safe (hard-1k)", "privacy", "violence", "all", "$x_1$"} <= set(found)


def test_kinds_of_prompts_that_were_not_asked_are_left_out():
    found = texts(behaviour_plots.rates_table(results(sources=("toxic", "80k"))))
    assert "safe (hard-1k)" not in found
    assert len(behaviour_plots.trade_off(results(2, ("toxic", "80k"))).axes) == 1 + 2  # a panel, a dot a model


def test_without_safe_prompts_the_figure_says_so():
    assert any("no model was asked" in text for text in texts(behaviour_plots.trade_off(results(1, ("toxic",)))))


def test_names_stand_in_the_legend_with_n():
    found = texts(behaviour_plots.trade_off(results()))
    assert "n 12 toxic, 12 80k, 12 hard-1k" in found
    assert "meta-llama/A-very-long-na\u2026" in found

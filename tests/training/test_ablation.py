"""Runs side by side: which there are, what they reached, and how that is told."""

import json
import math
import statistics

import pytest

from vtalign_jax.config import Config, resolve
from vtalign_jax.errors import UserError
from vtalign_jax.training import ablation
from vtalign_jax.training.ablation import FIGURES, Reached, Run, Spread


def test_the_field_and_its_values_are_read():
    found = ablation.parse_vary("objective.same_recording_weight=0.3, 0.4")
    assert found == ("objective.same_recording_weight", ["0.3", "0.4"])
    assert ablation.parse_vary("config.tune.mlp=true")[0] == "tune.mlp"
    for text in ("objective.preset", "objective.preset=", "objective.preset=plan,,egonce"):
        with pytest.raises(UserError, match="--vary"):
            ablation.parse_vary(text)


def test_every_value_is_run_with_every_seed_and_nothing_else_differs():
    config = resolve({"train": {"epochs": 3}})
    runs = ablation.make_runs(config, "objective.preset", ["plan", "egonce"], [4, 7], "out")
    assert [(run.value, run.seed, run.workdir) for run in runs] == [
        ("plan", 4, "out/plan-4"),
        ("plan", 7, "out/plan-7"),
        ("egonce", 4, "out/egonce-4"),
        ("egonce", 7, "out/egonce-7"),
    ]
    assert runs[3].config == resolve(
        {"train": {"epochs": 3, "seed": 7}, "objective": {"preset": "egonce"}}
    )


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("objective.same_recording_weight", "0.35", 0.35),
        ("train.contrastive_batch", "48", 48),
        ("tune.mlp", "True", True),
        ("tune.alpha", "8", 8.0),
        ("model.pooling", "mean", "mean"),
    ],
)
def test_a_value_has_the_type_of_its_field(field, value, expected):
    (run,) = ablation.make_runs(Config(), field, [value], [0], "out")
    section, name = field.split(".")
    found = getattr(getattr(run.config, section), name)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("field", "values", "seeds", "told"),
    [
        ("objective.presets", ["plan"], [0], "no field objective.presets"),
        ("objective", ["plan"], [0], "no field objective"),
        ("objective.preset", ["plan", "plans"], [0], "must be one of plan"),
        ("tune.mlp", ["yes"], [0], "must be bool, --vary gives 'yes'"),
        ("train.epochs", ["2.5"], [0], "must be int"),
        ("train.epochs", ["2", "2"], [0], "value 2 is named twice"),
        ("train.epochs", ["2"], [1, 1], "seed 1 is named twice"),
        ("tune.alpha", ["8", "8.0"], [0], "values 8 and 8.0 of tune.alpha are the same"),
        ("objective.preset", [], [0], "no value is named"),
        ("train.epochs", ["2"], [], "no seed is named"),
        ("train.seed", ["2"], [0], "is what --seeds is for"),
        ("train.epochs", ["2"], [-1], "config.train.seed must lie in"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(field, values, seeds, told):
    with pytest.raises(UserError, match=told):
        ablation.make_runs(Config(), field, values, seeds, "out")


def reached(step=10, **val):
    figures = dict.fromkeys(FIGURES, 0.5) | val
    references = {"chance": dict.fromkeys(FIGURES, 0.2), "zero_shot": dict.fromkeys(FIGURES, 0.25)}
    return Reached(step, references | {"val": figures})


def test_rows_are_mean_deviation_and_range_over_seeds():
    recalls = {"plan": [0.5, 0.75, 0.7], "infonce": [0.6]}
    found = ablation.summarise(
        {value: [reached(**{"recall@5": r}) for r in several] for value, several in recalls.items()}
    )
    assert list(found) == ["chance", "zero_shot", "plan", "infonce"]
    several, alone = found["plan"]["recall@5"], found["infonce"]["recall@5"]
    assert several.mean == pytest.approx(0.65)
    assert several.sd == pytest.approx(statistics.stdev(recalls["plan"]))
    assert several[2:] == (0.5, 0.75, 3)
    assert alone == Spread(0.6, None, 0.6, 0.6, 1)
    assert found["chance"]["recall@5"].mean == pytest.approx(0.2)
    assert found["zero_shot"]["recall@5"].runs == 4


def test_what_is_no_number_is_left_out_of_the_mean_and_shown_as_absent():
    several = [reached(choice_intra=None), reached(choice_intra=0.75)]
    found = ablation.summarise({"plan": several, "egonce": [reached(choice_intra=None)]})
    assert found["plan"]["choice_intra"] == Spread(0.75, None, 0.75, 0.75, 1)
    assert found["egonce"]["choice_intra"] is None
    line = next(
        line
        for line in ablation.format_rows("objective.preset", found).splitlines()
        if line.startswith("egonce")
    )
    assert line.split() == ["egonce", "1", "0.500", "0.500", "-", "0.500", "0.500"]


def test_the_table_has_a_row_a_value_below_chance_and_zero_shot():
    values = {"recall@5": 0.625, "choice_inter": 0.75}
    found = ablation.summarise({"plan": [reached(**values), reached()], "infonce": [reached()]})
    lines = ablation.format_rows("objective.preset", found).splitlines()
    assert lines[0].split("  ")[0] == "objective.preset"
    assert [heading in lines[0] for heading in FIGURES.values()] == [True] * 5
    assert [line.split()[0] for line in lines[2::2]][:4] == [
        "chance",
        "zero_shot",
        "plan",
        "infonce",
    ]
    assert "0.562 ±0.088" in lines[6]
    assert "0.500..0.625" in lines[7]
    assert max(map(len, lines)) <= 100


def test_the_best_run_is_the_best_seed_of_the_value_that_is_best_on_average():
    recalls = {"plan": [0.9, 0.1], "egonce": [0.6, 0.7]}
    runs = [Run(value, seed, f"{value}-{seed}", Config()) for value in recalls for seed in range(2)]
    found = {
        value: [reached(**{"recall@5": recall}) for recall in several]
        for value, several in recalls.items()
    }
    assert ablation.best_run(runs, found).workdir == "egonce-1"


def test_rows_and_runs_are_json():
    runs = [Run("plan", seed, f"plan-{seed}", Config()) for seed in range(2)]
    found = {"plan": [reached(step=10), reached(step=20, choice_intra=None)]}
    written = ablation.to_json(runs, found, ablation.summarise(found))
    read = json.loads(json.dumps(written, allow_nan=False))
    assert read == written
    assert [run["best_step"] for run in read["runs"]] == [10, 20]
    assert read["runs"][1]["val"]["choice_intra"] is None
    assert read["rows"]["plan"]["choice_intra"]["runs"] == 1
    assert math.isclose(read["rows"]["chance"]["recall@1"]["mean"], 0.2)

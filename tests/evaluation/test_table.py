import itertools
import math

import numpy as np

from tests.objectives.identities import make_identity
from vtalign_jax.evaluation.choice import choice_chance, choice_metrics, make_questions
from vtalign_jax.evaluation.result import Evaluation
from vtalign_jax.evaluation.retrieval import chance_metrics, retrieval_metrics
from vtalign_jax.evaluation.table import format_table

LOW, HIGH = ["0.250", "0.750", "-", "-", "0.500"], ["0.500", "1.000", "-", "-", "0.625"]
GROUP = {"clips": 1234, "texts": 5, "recall@1": 0.125, "recall@5": 0.25, "recall@10": 0.5}


def test_every_number_stands_in_its_row_and_column():
    identity = make_identity(np.arange(20) // 9, text=np.arange(20) % 11)
    z = np.eye(20, dtype=np.float32)
    questions = make_questions(identity)
    rows = {
        "chance": Evaluation(chance_metrics(identity) | choice_chance(questions)),
        "checkpoint": Evaluation(
            retrieval_metrics(z, z, identity)
            | choice_metrics(z, z, questions)
            | {"silhouette": 0.125},
            {"recall@1": (0.25, 0.5), "recall@5": (0.75, 1.0), "mAP": (0.5, 0.625)},
        ),
    }
    lines = format_table(rows).splitlines()
    assert lines[0].split() == ["R@1", "R@5", "R@10", "median", "mAP"]
    assert len({len(line) for line in lines[:16]}) == 1
    blocks = [line for line in lines if " chance " in line]
    assert [line.split("chance")[0].strip() for line in blocks] == [
        "multi-instance, both ways",
        "video -> text",
        "text -> video",
        "row to row, both ways",
        "row to row, video -> text",
        "row to row, text -> video",
        "texts of several recordings",
        "five-way choice",
    ]
    plain = rows["checkpoint"].metrics["plain/recall@1"]
    (below,) = [after for line, after in itertools.pairwise(lines) if "row to row, both" in line]
    assert below.split() == ["checkpoint", f"{plain:.3f}", "1.000", "1.000", "1.0", "1.000"]
    (margin,) = [line for line in lines if line.startswith("margin")]
    assert margin.split()[-1] == f"{rows['checkpoint'].metrics['margin']:.3f}"
    (below,) = [line for line in lines if line.startswith("silhouette")]
    assert below.split()[-2:] == ["checkpoint", "0.125"]
    low, high = lines[4:6]
    assert low.split() == ["95", "%", "interval:", "from", "checkpoint", *LOW]
    assert high.split() == ["to", *HIGH]


def test_recalls_of_datasets_and_levels_stand_below_with_their_counts():
    identity = make_identity(np.arange(20) // 9, text=np.arange(20) % 11)
    metrics = chance_metrics(identity) | choice_chance(make_questions(identity))
    groups = {
        "dataset": {"long " * 9: GROUP | {"recall@5": 0.75}},
        "level": {"action": GROUP | {"recall@1": math.nan}},
        "recording": {"P01": GROUP},
    }
    rows = {"chance": Evaluation(metrics), "checkpoint": Evaluation(metrics, groups=groups)}
    lines = format_table(rows).splitlines()
    start = next(n for n, line in enumerate(lines) if line.split()[:2] == ["clips", "texts"])
    shown = lines[start : start + 4]
    assert len({len(line) for line in shown}) == 1
    assert shown[2].startswith("dataset long long")
    assert "…" in shown[2]
    assert [line.split()[-5:] for line in shown[2:]] == [
        ["1,234", "5", "0.125", "0.750", "0.500"],
        ["1,234", "5", "-", "0.250", "0.500"],
    ]
    assert not any("P01" in line for line in lines)


def test_repeated_texts_and_choices_stand_below_with_what_they_rest_on():
    identity = make_identity(np.arange(20) // 9, text=np.arange(20) % 11)
    questions = make_questions(identity)
    chance = chance_metrics(identity) | choice_chance(questions)
    other = {"recall@1_repeated": 0.25, "recall@5_repeated": 0.75, "choice_intra": 0.5}
    found = chance | other | {"choice_inter": math.nan}
    rows = {"chance": Evaluation(chance), "checkpoint": Evaluation(found)}
    lines = format_table(rows).splitlines()
    tails = [line.split("checkpoint")[1].split() for line in lines if "checkpoint" in line]
    assert tails[-2:] == [["0.250", "0.750"], ["0.500", "-"]]
    assert [line.split() for line in lines if "intra" in line] == [["intra", "inter"]]
    assert lines[-3:] == [
        "9 texts stand in several recordings",
        "five-way choice within a recording: 18 questions, 2 clips left out for want of four "
        "others",
        "five-way choice across recordings: 20 questions, 0 left out",
    ]

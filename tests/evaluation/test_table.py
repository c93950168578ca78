import itertools
import math

import numpy as np

from tests.objectives.identities import make_identity
from vtalign_jax.evaluation.choice import choice_chance, choice_metrics, make_questions
from vtalign_jax.evaluation.retrieval import chance_metrics, retrieval_metrics
from vtalign_jax.evaluation.table import format_table


def test_every_number_stands_in_its_row_and_column():
    identity = make_identity(np.arange(20) // 9, text=np.arange(20) % 11)
    z = np.eye(20, dtype=np.float32)
    questions = make_questions(identity)
    rows = {
        "chance": chance_metrics(identity) | choice_chance(questions),
        "checkpoint": retrieval_metrics(z, z, identity) | choice_metrics(z, z, questions),
    }
    lines = format_table(rows).splitlines()
    assert lines[0].split() == ["R@1", "R@5", "R@10", "median", "mAP"]
    assert len({len(line) for line in lines[:14]}) == 1
    blocks = [line for line in lines if " chance " in line]
    assert [line.split("chance")[0].strip() for line in blocks] == [
        "multi-instance, both ways",
        "video -> text",
        "text -> video",
        "plain, both ways",
        "video -> text",
        "text -> video",
        "texts of several recordings",
        "five-way choice",
    ]
    plain = rows["checkpoint"]["plain/recall@1"]
    (below,) = [after for line, after in itertools.pairwise(lines) if "plain" in line]
    assert below.split() == ["checkpoint", f"{plain:.3f}", "1.000", "1.000", "1.0", "1.000"]
    (margin,) = [line for line in lines if line.startswith("margin")]
    assert margin.split()[-1] == f"{rows['checkpoint']['margin']:.3f}"


def test_repeated_texts_and_choices_stand_below_with_what_they_rest_on():
    identity = make_identity(np.arange(20) // 9, text=np.arange(20) % 11)
    questions = make_questions(identity)
    chance = chance_metrics(identity) | choice_chance(questions)
    other = {"recall@1_repeated": 0.25, "recall@5_repeated": 0.75, "choice_intra": 0.5}
    found = chance | other | {"choice_inter": math.nan}
    lines = format_table({"chance": chance, "checkpoint": found}).splitlines()
    tails = [line.split("checkpoint")[1].split() for line in lines if "checkpoint" in line]
    assert tails[-2:] == [["0.250", "0.750"], ["0.500", "-"]]
    assert [line.split() for line in lines if "intra" in line] == [["intra", "inter"]]
    assert lines[-3:] == [
        "9 texts stand in several recordings",
        "five-way choice within a recording: 18 questions, 2 clips left out for want of four "
        "others",
        "five-way choice across recordings: 20 questions, 0 left out",
    ]

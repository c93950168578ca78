import itertools

import numpy as np

from tests.objectives.identities import make_identity
from vtalign_jax.evaluation.retrieval import chance_metrics, retrieval_metrics
from vtalign_jax.evaluation.table import format_table


def test_every_number_stands_in_its_row_and_column():
    identity = make_identity(np.arange(20), text=np.arange(20) // 2)
    z = np.eye(20, dtype=np.float32)
    rows = {"chance": chance_metrics(identity), "checkpoint": retrieval_metrics(z, z, identity)}
    lines = format_table(rows).splitlines()
    assert lines[0].split() == ["R@1", "R@5", "R@10", "median", "mAP"]
    assert len({len(line) for line in lines[:-1]}) == 1
    blocks = [line for line in lines if " chance " in line]
    assert [line.split("chance")[0].strip() for line in blocks] == [
        "multi-instance, both ways",
        "video -> text",
        "text -> video",
        "plain, both ways",
        "video -> text",
        "text -> video",
    ]
    plain = rows["checkpoint"]["plain/recall@1"]
    (below,) = [after for line, after in itertools.pairwise(lines) if "plain" in line]
    assert below.split() == ["checkpoint", f"{plain:.3f}", "1.000", "1.000", "1.0", "1.000"]
    assert lines[-1].split()[-1] == f"{rows['checkpoint']['margin']:.3f}"

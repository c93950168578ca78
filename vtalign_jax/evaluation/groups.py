"""Recall a dataset, a level of the tree and a recording: who is it that is found?"""

import collections
from collections.abc import Mapping
from pathlib import PurePosixPath

import numpy as np

from vtalign_jax.evaluation.columns import GROUPS
from vtalign_jax.evaluation.result import Groups
from vtalign_jax.evaluation.retrieval import RECALL_AT, Ranked
from vtalign_jax.pipeline.dataset import ClipSplit


def group_names(split: ClipSplit) -> dict[str, np.ndarray]:
    """Return the name of each record's dataset, level and recording: str[N] by kind.

    Where annotations name no dataset, it is the folder that `prepare` wrote, by its whole path
    where the last part of it would name two.
    """
    names = {
        kind: np.array(split.table[group.column].to_pylist()) for kind, group in GROUPS.items()
    }
    paths = [part.data_dir for part in split.parts]
    ends = [PurePosixPath(path).name for path in paths]
    taken = collections.Counter([*ends, *set(names["dataset"].tolist())])
    folders = [end if taken[end] == 1 else path for end, path in zip(ends, paths, strict=True)]
    folder = np.repeat(folders, [len(part) for part in split.parts])
    names["dataset"] = np.where(names["dataset"] == "", folder, names["dataset"])
    return names


def group_recalls(ranked: Ranked, names: Mapping[str, np.ndarray]) -> Groups:
    """Return kind -> name -> `clips`, `texts` and recall@{1, 5, 10}, multi-instance, both ways.

    Only who asks is restricted: ranks stay those among the whole split's candidates. A text's query
    belongs to every group that holds one of its right clips, so that texts may count in several.

    Args:
      ranked: of N clips.
      names: kind -> str[N], each clip's group.
    """
    return {kind: _recalls(ranked, name) for kind, name in names.items()}


def _recalls(ranked: Ranked, name: np.ndarray) -> dict[str, dict[str, float]]:
    names, of_clip = np.unique(name, return_inverse=True)
    answers, count = ranked.answers, len(names)
    places = np.unique(answers.candidate * count + of_clip[answers.query])
    text, of_text = places // count, places % count
    clips, texts = np.bincount(of_clip, minlength=count), np.bincount(of_text, minlength=count)
    columns = {"clips": clips, "texts": texts}
    for k in RECALL_AT:
        found_clips = np.bincount(of_clip, ranked.multi[0].rank <= k, count)
        found_texts = np.bincount(of_text, ranked.multi[1].rank[text] <= k, count)
        columns[f"recall@{k}"] = (found_clips / clips + found_texts / texts) / 2
    return {
        str(each): {column: values[n].item() for column, values in columns.items()}
        for n, each in enumerate(names)
    }

"""What metrics are called and how they are printed, in the terminal, in reports and in charts."""

from typing import NamedTuple


class Column(NamedTuple):
    """A metric of each direction: its heading, and how it is printed."""

    heading: str
    form: str


class Choice(NamedTuple):
    """A five-way choice: its heading, and where the other four clips are from."""

    heading: str
    others: str


class Group(NamedTuple):
    """A way to divide a split.

    Attributes:
      column: of the dataset's table, whose values name the groups.
      title: of its table.
      is_many: whether there are too many of them for a terminal and for `metrics.jsonl`.
    """

    column: str
    title: str
    is_many: bool = False


RANKS = {
    "recall@1": Column("R@1", ".3f"),
    "recall@5": Column("R@5", ".3f"),
    "recall@10": Column("R@10", ".3f"),
    "median_rank": Column("median", ".1f"),
    "mAP": Column("mAP", ".3f"),
}
BLOCKS = {  # prefix of these metrics' names: what it is called
    "": "multi-instance, both ways",
    "video_to_text/": "video -> text",
    "text_to_video/": "text -> video",
    "plain/": "row to row, both ways",
    "plain/video_to_text/": "row to row, video -> text",
    "plain/text_to_video/": "row to row, text -> video",
}
REPEATED = "texts of several recordings"  # of `recall@k_repeated`
CHOICES = {
    "choice_intra": Choice("intra", "within a recording"),
    "choice_inter": Choice("inter", "across recordings"),
}
CLUSTERS = {"margin": "margin (right - wrong)", "silhouette": "silhouette by text"}
GROUPS = {
    "dataset": Group("dataset", "Datasets"),
    "level": Group("level", "Levels of the hierarchy"),
    "recording": Group("recording_id", "Recordings, the hardest first", is_many=True),
}


def heading(metric: str) -> str:
    """Return the heading of a metric, its direction left out."""
    return RANKS[metric].heading

r"""Report: draw a run, or several side by side, as one HTML file that needs no network.

    python launch/report.py --workdir=runs/pretrain [--out=report.html]
    python launch/report.py --compare runs/pretrain runs/other [--out=comparison.html]

Training writes the report of its workdir at each evaluation; this draws it again, with what has
come since: exports, groundings, or a newer version of the page. --dataset says where the dataset
is now, if it has moved or this is another folder than the run was started in; without it the page
has no frames, and a warning says so.
"""

import sys

from absl import flags

from vtalign_jax import commandline, remote
from vtalign_jax.errors import UserError
from vtalign_jax.evaluation.report import page

_WORKDIR = flags.DEFINE_string("workdir", "", "folder of a run of train.py")
_COMPARE = flags.DEFINE_list("compare", [], "workdirs to show side by side, two to eight")
_DATASET = flags.DEFINE_string("dataset", "", "where the dataset is now, if it has moved")
_OUT = flags.DEFINE_string(
    "out",
    "",
    "HTML file; by default report.html in the workdir, or comparison.html in this folder",
)


def main(*more: str) -> None:
    """Write the page and say where.

    Args:
      *more: further workdirs after `--compare A`.
    """
    compared = [*_COMPARE.value, *more]
    if bool(_WORKDIR.value) == bool(_COMPARE.value):
        raise UserError("name one run with --workdir, or several with --compare; see --help")
    if more and not _COMPARE.value:
        raise UserError(f"unexpected argument {more[0]!r}; a flag is --name=value")
    if compared:
        workdirs = [remote.path(each) for each in compared]
        written = page.write_comparison(workdirs, _OUT.value, _warn)
    else:
        workdir = remote.path(_WORKDIR.value)
        written = page.write_report(workdir, _OUT.value, _DATASET.value, _warn)
    print(f"report: {written}")


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    commandline.run(main, takes_more=True)

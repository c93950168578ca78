r"""Prove on this machine's own devices that the numbers are right, before training on them.

    python launch/doctor.py [--base=DIR] [--json]

Each check holds what the devices or the pipeline compute against something else that must give the
same: one device, a plain loop, float64 in NumPy, the base's own chat template. One line a check:
the figure, its limit, what was compared, and in brackets what was farthest apart. It takes under
three minutes and needs no network: a small random base is written on first use.

--base=DIR looks at the tokenizer and the processor of a real base instead; with --base_weights the
checks of the model run on its weights, too.

Exit code: 0 all passed, 1 a check failed, 2 a mistake on the command line.
"""

import json
import os
import sys
import time

import jax
from absl import flags

from vtalign_jax import commandline, distributed
from vtalign_jax.doctor.examination import CHECKS, Checked, examine
from vtalign_jax.doctor.subject import Subject
from vtalign_jax.errors import UserError
from vtalign_jax.interop.base_files import TINY, resolve_base
from vtalign_jax.wording import counted

_BASE = flags.DEFINE_string("base", TINY, "directory or hub id of the base to look at")
_BASE_WEIGHTS = flags.DEFINE_bool("base_weights", False, "run the model's checks on its weights")
_CHECKS = flags.DEFINE_list("checks", [], f"only these, of {', '.join(CHECKS)}")
_JSON = flags.DEFINE_bool("json", False, "print what was found as JSON instead of lines")


def main() -> None:
    """Examine, report, and exit with 1 if a check failed."""
    began = time.perf_counter()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # no remark on absent PyTorch
    unknown = [name for name in _CHECKS.value if name not in CHECKS]
    if unknown:
        raise UserError(f"--checks={unknown[0]} is none; the checks are {', '.join(CHECKS)}")
    processor = resolve_base(_BASE.value)
    subject = Subject(processor if _BASE_WEIGHTS.value else resolve_base(TINY), processor)
    if not _JSON.value:
        how_long = "" if _CHECKS.value else "; about two minutes, most of them to compile"
        _say(f"{_machine()}{how_long}")
    checked = []
    for found in examine(subject, _CHECKS.value or CHECKS):
        checked.append(found)
        if not _JSON.value:
            _say(found.line)
        if not found.finding.passed and jax.process_index():  # perhaps on this machine alone
            print(f"process {jax.process_index()}: {found.line}", file=sys.stderr, flush=True)
    failed = [found.name for found in checked if not found.finding.passed]
    seconds = time.perf_counter() - began
    if _JSON.value:
        _say(json.dumps(_as_json(checked, seconds), indent=1))
    else:
        _say(f"{_verdict(failed, len(checked))}, after {seconds:.0f} s")
    sys.exit(1 if failed else 0)


def _machine() -> str:
    first = jax.devices()[0]
    return (
        f"{jax.device_count()} x {first.device_kind} ({first.platform}), "
        f"{jax.process_count()} process(es), jax {jax.__version__}"
    )


def _verdict(failed: list[str], count: int) -> str:
    if failed:
        return f"{len(failed)} of {counted(count, 'check')} FAILED: {', '.join(failed)}"
    return f"{'all ' * (count > 1)}{counted(count, 'check')} passed"


def _as_json(checked: list[Checked], seconds: float) -> dict:
    first = jax.devices()[0]
    return {
        "passed": all(found.finding.passed for found in checked),
        "devices": jax.device_count(),
        "device_kind": first.device_kind,
        "platform": first.platform,
        "processes": jax.process_count(),
        "jax": jax.__version__,
        "seconds": round(seconds, 1),
        "checks": [found.as_json() for found in checked],
    }


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)


if __name__ == "__main__":
    commandline.run(main, around=distributed.connected)

"""Exports made with the newest libraries, loaded with the oldest that are supported.

    OLD_PYTHON=.venv-old/bin/python python tests/old_libraries/compare.py

`make test-old` makes both environments and runs it. It prints the table that stands in the README,
and exits with 1 if an embedding differs or an adapter key is lost.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
os.environ.update(JAX_PLATFORMS="cpu", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")

from tests.interop.checkpoints import make_config, write_base, write_checkpoint  # noqa: E402, by the path above
from vtalign_jax.interop import certificate  # noqa: E402, the same
from vtalign_jax.interop.forms import FORMS, MERGED, PEFT  # noqa: E402, the same

CASES = {
    "LoRA on the connector, shared head, last token": {},
    "LoRA on the MLPs, connector in full, two heads, mean": {
        "model": {"head": "per_modality", "pooling": "mean"},
        "tune": {"connector": "full", "mlp": True},
    },
}
HEADER = """| base | tuned | form | versions | lowest cosine, clips | texts | largest error \
| lost keys | with the library's own positions |
|---|---|---|---|---|---|---|---|---|"""
CHECK = FORMS[MERGED].check  # the same script checks both forms
WIDTH = 48  # of the tiny base's tower
MOST_ERROR = 1e-5
LOADERS = Path(__file__).with_name("load_merged.py")


def main() -> None:
    """Export, compare, print."""
    old = Path(os.environ["OLD_PYTHON"]).absolute()  # not resolved: a link is what makes it a venv
    is_passed = True
    print(HEADER, flush=True)
    for architecture in ("smolvlm", "idefics3"):
        for name, sections in CASES.items():
            with tempfile.TemporaryDirectory() as folder:
                base = write_base(Path(folder, "base"), architecture)
                workdir = write_checkpoint(Path(folder, "run"), make_config(base, **sections))
                for form in (PEFT, MERGED):
                    export = make_export(workdir, form)
                    found = [*certificate.results(export), run_json([old, CHECK, export])]
                    for result in found:
                        is_passed &= certificate.is_passed(result)
                        print(row(architecture, name, form, result), flush=True)
                is_passed &= is_loaded_alike(export, [sys.executable, old])
    sys.exit(0 if is_passed else 1)


def make_export(workdir: Path, form: str) -> Path:
    """Return an export of a checkpoint, made and verified by the command."""
    out = workdir.parent / form
    command = ["launch/export.py", f"--checkpoint={workdir}", f"--format={form}", f"--out={out}"]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode or "UNVERIFIED" in done.stdout:
        sys.exit(done.stdout + done.stderr)
    return out


def is_loaded_alike(export: Path, pythons: list) -> bool:
    """Print and return whether every class loads a merged export, and connectors agree."""
    rng = np.random.default_rng(0)
    pixels, states = rng.uniform(-1, 1, (2, 3, 64, 64)), rng.standard_normal((2, 64, WIDTH))
    inputs = export.parent / "inputs.safetensors"
    given = {"pixels": pixels, "states": states}
    save_file({name: x.astype(np.float32) for name, x in given.items()}, inputs)
    found = [run_json([python, LOADERS, export, inputs]) for python in pythons]
    states = [np.array(one.pop("connector")) for one in found]
    features = [np.array(one.pop("features")) for one in found]
    error = np.abs(states[0] - states[1]).max() / np.abs(states[0]).max()
    moved = np.abs(features[0] - features[1]).max() / np.abs(features[0]).max()
    is_alike = found[0] == found[1] and error < MOST_ERROR
    is_alike &= all(one["is_named_class"] and one["is_equal"] for one in found)
    print(f"loaded as {', '.join(found[1]['classes'])}: {'alike' if is_alike else found}")
    print(
        f"connector, oldest against newest: {error:.1e}; behind the tower, whose patches it "
        f"may place elsewhere: {moved:.1e}",
        flush=True,
    )
    return is_alike


def run_json(command: list) -> dict:
    """Return the JSON object that a command prints."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def row(architecture: str, name: str, form: str, result: dict) -> str:
    """Return one line of the table."""
    error = max(result["max_error_video"], result["max_error_text"])
    return (
        f"| {architecture} | {name} | {form} | {certificate.libraries(result)} | "
        f"{result['cosine_video']:.7f} | {result['cosine_text']:.7f} | {error:.1e} | "
        f"{len(result['missing']) + len(result['unexpected'])} | "
        f"{result['cosine_video_unrepaired']:.4f} |"
    )


if __name__ == "__main__":
    main()

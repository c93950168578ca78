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

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
os.environ.update(JAX_PLATFORMS="cpu", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")

from tests.interop.checkpoints import make_config, write_base, write_checkpoint  # noqa: E402
from vtalign_jax.interop import certificate  # noqa: E402

CASES = {
    "LoRA on the connector, shared head, last token": {},
    "LoRA on the MLPs, connector in full, two heads, mean": {
        "model": {"head": "per_modality", "pooling": "mean"},
        "tune": {"connector": "full", "mlp": True},
    },
}
CHECK = ROOT / "vtalign_jax" / "interop" / "torch_scripts" / "check.py"
HEADER = """| base | tuned | transformers, peft | lowest cosine, clips | texts | largest error \
| lost keys | with the library's own positions |
|---|---|---|---|---|---|---|---|"""


def main() -> None:
    """Export, compare, print."""
    old = Path(os.environ["OLD_PYTHON"]).absolute()  # not resolved: a link is what makes it a venv
    is_passed = True
    print(HEADER, flush=True)
    for architecture in ("smolvlm", "idefics3"):
        for name, sections in CASES.items():
            with tempfile.TemporaryDirectory() as folder:
                export = make_export(Path(folder), architecture, sections)
                found = [*certificate.results(export), run_json([old, CHECK, export])]
            for result in found:
                is_passed &= certificate.is_passed(result)
                print(row(architecture, name, result), flush=True)
    sys.exit(0 if is_passed else 1)


def make_export(folder: Path, architecture: str, sections: dict) -> Path:
    """Return an export of a random base, made and verified by the command."""
    base = write_base(folder / "base", architecture)
    workdir = write_checkpoint(folder / "run", make_config(base, **sections))
    command = ["launch/export.py", f"--checkpoint={workdir}", f"--out={folder / 'out'}"]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode or "UNVERIFIED" in done.stdout:
        sys.exit(done.stdout + done.stderr)
    return folder / "out"


def run_json(command: list) -> dict:
    """Return the JSON object that a command prints."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def row(architecture: str, name: str, result: dict) -> str:
    """Return one line of the table."""
    error = max(result["max_error_video"], result["max_error_text"])
    return (
        f"| {architecture} | {name} | {result['transformers']}, {result['peft']} | "
        f"{result['cosine_video']:.7f} | {result['cosine_text']:.7f} | {error:.1e} | "
        f"{len(result['missing']) + len(result['unexpected'])} | "
        f"{result['cosine_video_unrepaired']:.4f} |"
    )


if __name__ == "__main__":
    main()

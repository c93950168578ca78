"""The runtime without PyTorch, as on a TPU VM."""

import pathlib
import subprocess
import sys

from tests.commands import ROOT, environment
from tests.hidden_packages import hiding
from tests.interop.checkpoints import make_config, write_base, write_checkpoint


def test_export_says_unverified_and_every_command_imports_without_torch(tmp_path):
    workdir = write_checkpoint(
        tmp_path / "run", make_config(write_base(tmp_path / "base", "smolvlm"))
    )
    out = tmp_path / "out"
    script = f"""{hiding("torch", "torchvision", "peft", "accelerate", "sentence_transformers")}
import runpy
from absl import flags
for command in ("prepare", "train", "evaluate"):
    runpy.run_path(f"launch/{{command}}.py")
    for flag in list(flags.FLAGS.flags_by_module_dict()["<run_path>"]):
        delattr(flags.FLAGS, flag.name)
sys.argv = ["export.py", "--checkpoint={workdir}", "--out={out}", "--push_to_hub=org/name"]
try:
    runpy.run_path("launch/export.py", run_name="__main__")
finally:
    assert not hidden & set(sys.modules), hidden & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment() | {"PYTHONPATH": str(ROOT), "HF_TOKEN": "hf_any"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-3] == f"wrote {out}"
    assert lines[-2].startswith("UNVERIFIED: torch, peft not installed")
    assert lines[-1].strip() == f"python launch/export.py --verify={out}"
    (refused,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert f"{out} is UNVERIFIED" in refused
    assert "was not pushed" in refused
    card = pathlib.Path(out, "README.md").read_text()
    assert "**UNVERIFIED**: torch, peft not installed where it was written." in card
    assert "python launch/export.py --verify=" in card

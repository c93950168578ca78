"""launch/doctor.py as a user runs it."""

import json

import pytest

from tests.commands import one_error_line, run
from vtalign_jax.doctor.examination import CHECKS
from vtalign_jax.interop.tiny import write_tiny_checkpoint

DEVICES = "--xla_force_host_platform_device_count="


def doctor(tmp, *flags, code=0, **extra):
    return run("launch/doctor.py", *flags, code=code, XDG_CACHE_HOME=str(tmp), **extra)


def test_checks_that_are_named_run_and_are_one_line_each(tmp_path):
    lines = doctor(tmp_path, "--checks=pixels,collectives").splitlines()
    first, *found, last = lines
    assert "1 x cpu" in first
    assert "minutes" not in first  # those of all checks
    assert [line.split()[:2] for line in found] == [["pass", "pixels"], ["pass", "collectives"]]
    assert all("(limit " in line for line in found)
    assert last.startswith("all 2 checks passed")


def test_another_mean_in_a_real_base_is_a_failed_check_in_json(tmp_path):
    base = tmp_path / "base"
    write_tiny_checkpoint(base)
    settings = json.loads((base / "preprocessor_config.json").read_text())
    settings["image_mean"] = [0.48, 0.46, 0.41]
    (base / "preprocessor_config.json").write_text(json.dumps(settings))
    flags = (f"--base={base}", "--checks=pixels,resize", "--json")
    said = json.loads(doctor(tmp_path, *flags, code=1))
    assert (said["passed"], said["devices"], said["processes"]) == (False, 1, 1)
    pixels, resize = said["checks"]
    assert (pixels["name"], pixels["passed"], resize["passed"]) == ("pixels", False, True)
    assert pixels["figure"] == pytest.approx(0.18, abs=0.001)
    assert pixels["limit"] < 0.01


def test_a_check_that_there_is_not_is_one_line(tmp_path):
    said = one_error_line(doctor(tmp_path, "--checks=pixels,pulse", code=2))
    assert "--checks=pulse is none; the checks are collectives, " in said


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_every_check_passes_in_a_process_of_its_own(devices, tmp_path):
    lines = doctor(tmp_path, XLA_FLAGS=f"{DEVICES}{devices}").splitlines()
    assert [line.split()[:2] for line in lines[1:-1]] == [["pass", name] for name in CHECKS]
    assert ("only 1 device" in "".join(lines)) == (devices == 1)
    assert lines[-1].startswith(f"all {len(CHECKS)} checks passed")

import json
import signal

import pytest

from tests.commands import one_error_line, run, start

PLAN = ("launch/plan.py", "--config=tests/launch/small_run.py")


def test_a_step_that_does_not_fit_ends_with_1_and_names_what_to_turn(tmp_path):
    flags = ("--topology=v5e:1x1", "--config.train.contrastive_batch=4194304", "--tries=0")
    output = run(*PLAN, *flags, "--config.tune.dropout=0.0", code=1)
    assert "Traceback" not in output
    assert "WARNING" not in output  # libtpu's, of a machine without a TPU
    assert "does NOT fit" in output
    hint = "--tries=0 ended before --config.model.remat=full was compiled"
    assert output.splitlines()[-1] == hint


@pytest.mark.slow  # near the limit the compiler itself searches long
def test_a_setting_is_found_that_fits(tmp_path):
    flags = ("--topology=v5e:1x1", "--config.train.contrastive_batch=12288")
    process = start(*PLAN, *flags, "--config.model.remat=full")
    output, _ = process.communicate(timeout=900)  # five minutes of two cores
    assert process.returncode == 1, output
    hint = output.splitlines()[-1]
    assert hint.startswith("it fits with --config.train.microbatch=")
    assert hint.endswith("(compiled)")


def test_a_plan_as_json_stands_alone_on_standard_output(tmp_path):
    command = [*PLAN, "--topology=v5e:1x1", "--config.tune.dropout=0.0", "--json"]
    programs = tmp_path / "programs"
    output = run(*command, JAX_COMPILATION_CACHE_DIR=str(programs))
    assert not programs.exists()  # a second plan could not read them
    lines = output.splitlines()
    report = json.loads("\n".join(lines[lines.index("{") :]))
    assert report["fits"]
    assert report["base"]["name"] == "tiny"
    assert report["memory"]["total_bytes"] < report["memory"]["hbm_bytes"]
    assert "epoch_hours" not in report  # neither --pairs nor a dataset


def test_a_users_mistakes_are_one_line(tmp_path):
    output = run(*PLAN, "--topology=v5e:3x3", code=2)
    assert "libtpu knows no --topology=v5e:3x3" in one_error_line(output)
    output = run(*PLAN, code=2)
    assert "--topology is missing" in one_error_line(output)
    output = run(*PLAN, "--topology=v5e:1x1", "--pairs=-1", code=2)
    assert "--pairs=-1: -1 is not a non-negative integer" in one_error_line(output)


def test_ctrl_c_ends_it_at_once_though_the_compiler_works(tmp_path):
    process = start(*PLAN, "--topology=v5e:1x1")
    assert process.stdout.readline().startswith("compiling the step")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert output == ""

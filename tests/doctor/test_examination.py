"""The checks pass on a healthy package, and each planted fault fails the checks that it should."""

import json
import math

import jax
import numpy as np
import pytest

from tests.doctor.faults import FAULTS
from vtalign_jax.config import ObjectiveConfig
from vtalign_jax.doctor import examination
from vtalign_jax.doctor.examination import CHECKS, examine
from vtalign_jax.doctor.figures import Finding, worst
from vtalign_jax.doctor.subject import Subject
from vtalign_jax.interop.tiny import write_tiny_checkpoint
from vtalign_jax.objectives.negatives import log_weights

HOST = {"collectives", "resize", "pixels", "prompt", "weights"}
SECONDS = HOST | {"loss", "heads"}
# Fault -> the checks that are run on it here; `make test-slow` runs all of them.
QUICK = {
    "lambda for neighbours": HOST,
    "weights swapped": HOST,
    "loss in bfloat16": SECONDS,
    "head in bfloat16": SECONDS,
    "gathered rows turned": SECONDS,
    "another mean": HOST,
    "bicubic": HOST,
    "stored frames bilinear": HOST,
    "labels a second late": HOST,
    "frames counted from one": HOST,
}
# Compiles in half the time: InfoNCE alone, no dropout.
LIGHT = {"objective": {"itm_weight": 0.0, "caption_weight": 0.0}, "tune": {"dropout": 0.0}}
# Fault -> the checks that are run on a light model, and which results of a healthy one are kept.
QUICK_LIGHT = {
    "attends to padding": ({"padding_tokens"}, ()),
    "gradient times devices": ({"devices"}, ("on_one",)),
    "microbatches left out": ({"microbatches"}, ("on_all",)),
    "features of the next clip": ({"features"}, ("on_one",)),
}
PLAN = ObjectiveConfig()
MADE = ("batch", "leaves", "real_rows", "bind", "config")  # by nothing that these faults are in


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(directory)
    return directory


@pytest.fixture(scope="module")
def healthy(base):
    return Subject(base, base, jax.devices()[:2])


@pytest.fixture(scope="module")
def healthy_light(base):
    return Subject(base, base, jax.devices()[:2], LIGHT)


def failed(subject, names):
    """Return the names of the checks that failed; none may raise."""
    found = list(examine(subject, [name for name in CHECKS if name in names]))
    assert [x.line for x in found if x.finding.figure is None] == []
    return {x.name for x in found if not x.finding.passed}


def like(healthy, sections, kept):
    """Return a subject that has some of what a healthy one has computed."""
    subject = Subject(healthy.base, healthy.base, jax.devices()[:2], sections)
    subject.__dict__.update({name: getattr(healthy, name) for name in kept})
    return subject


def test_a_healthy_package_passes_what_takes_seconds(healthy):
    assert failed(healthy, SECONDS) == set()


def test_a_healthy_package_passes_the_checks_of_padding_and_devices(healthy_light):
    assert failed(healthy_light, {"padding_tokens", "devices"}) == set()


@pytest.mark.parametrize("devices", [1, 2, 3, 8])
def test_on_any_number_of_devices_most_rows_are_real_and_some_are_padding(devices, base):
    subject = Subject(base, base, jax.devices()[:devices])
    mask = subject.batch.identity.row_mask
    assert len(mask) % devices == 0
    assert max(14, 0.8 * len(mask)) <= mask.sum() < len(mask)
    weights = np.exp(log_weights(subject.real_rows.identity, subject.real_rows.identity, PLAN))
    assert {0.0, 1.0} < set(np.round(weights, 3).ravel().tolist())  # and lambda


def test_the_gradient_of_every_leaf_is_there_to_be_compared(healthy_light):
    assert [p for p, x in healthy_light.on_one.gradient.items() if not np.any(x)] == []


@pytest.mark.parametrize("name", QUICK)
def test_a_planted_fault_fails_its_checks_and_no_others(name, healthy, monkeypatch):
    fault, subject = FAULTS[name], like(healthy, None, MADE)
    fault.plant(monkeypatch)
    found = failed(subject, QUICK[name])
    assert fault.fails & QUICK[name] <= found <= fault.fails | fault.may_fail


@pytest.mark.parametrize("name", QUICK_LIGHT)
def test_a_fault_planted_in_the_model_or_the_step_fails_its_check(name, healthy_light, monkeypatch):
    names, kept = QUICK_LIGHT[name]
    subject = like(healthy_light, LIGHT, MADE + kept)
    FAULTS[name].plant(monkeypatch)
    assert failed(subject, names) == names


@pytest.mark.slow
def test_a_healthy_package_passes_every_check_on_eight_devices(base):
    assert failed(Subject(base, base), set(CHECKS)) == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_of_every_check_a_planted_fault_fails_only_its_own(name, base, monkeypatch):
    fault = FAULTS[name]
    fault.plant(monkeypatch)
    found = failed(Subject(base, base, jax.devices()[:2]), set(CHECKS))
    assert fault.fails <= found <= fault.fails | fault.may_fail


def test_at_least_six_kinds_of_faults_are_planted_and_every_check_finds_one():
    assert set().union(*(fault.fails for fault in FAULTS.values())) == set(CHECKS)


def test_a_check_that_raises_has_failed_and_the_next_one_runs(monkeypatch):
    def broken(subject):
        raise RuntimeError("the device\nfell off")

    checks = {"first": broken, "second": lambda subject: Finding("a with b", 1e-6, 1e-4)}
    monkeypatch.setattr(examination, "CHECKS", checks)
    first, second = examine(None, checks)
    assert first.line.startswith("FAIL  first")
    assert "RuntimeError: the device" in first.line
    assert second.line == "pass  second             1e-06 (limit 0.0001)  a with b"
    assert json.loads(json.dumps(first.as_json(), allow_nan=False))["passed"] is False


def test_a_figure_that_is_no_number_fails_and_is_null_in_json():
    figure, name = worst({"a": 2.0, "b": math.nan, "c": 3.0})
    assert name == "b"
    finding = Finding("a with b", figure, 1.0)
    assert not finding.passed
    described = examination.Checked("c", finding, 0.0).as_json()
    assert json.loads(json.dumps(described, allow_nan=False))["figure"] is None
    assert not Finding("a with b", math.inf, 1.0).passed

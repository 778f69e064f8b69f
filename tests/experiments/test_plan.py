"""The printed plan, and the rates behind its times."""

import dataclasses
import functools
import json
import re
import sys
from importlib.util import find_spec

import pytest

from benchmarks.work import Work
from experiments import plan
from experiments.app import command_line, entry
from experiments.configs import loading
from experiments.jobs import making, rates
from highway_jax.population import DEVICES, Device

TINY = ("--config=digits_depth10", "--config.depth=7", "--config.width.highway=8", "--config.networks=highway")


def job():
    _, overrides, _ = command_line.split_config_flags(TINY)
    config = loading.load("digits_depth10", {}).config
    loading.override(config, overrides)
    config.update_from_flattened_dict({"epochs": 3, "num_runs": 12})
    return making.job_of(config, earlier={}, outlined=True)


@functools.cache  # a plan takes a second or two of compilation
def planned():
    """Twelve runs on two devices."""
    return plan.plans_of(job(), device=DEVICES["h100"], devices=2)["highway"]


def test_a_job_is_planned_as_its_config_says():
    made = planned()
    assert (made.runs, made.resident, made.runs_per_batch, made.steps) == (6, 6, 6, 6 * 3 * 30)
    assert made.flops_per_step == Work(7, 1, 50, 8, 1).flops() - 4 * 50 * 8 * (784 - 64)


def write_rate(directory, depth, device, flops, ms, cpu="any"):
    result = {
        "machine": {"cpu": cpu},
        "work": {"depth": depth, "runs": 8},
        "flops_per_run_step": flops,
        "contenders": {"ours": {"device": device, "ms": ms, "ms_min": ms / 2, "ms_max": 2 * ms}},
    }
    (directory / f"population_{depth}_{device[-3:]}.json").write_text(json.dumps(result))


def test_rates_are_the_devices_own_and_lie_between_those_measured(tmp_path):
    write_rate(tmp_path, 10, "4 x X", flops=8e6, ms=1)  # 8e9 a second on four
    write_rate(tmp_path, 1000, "4 x X", flops=8e8, ms=50)
    write_rate(tmp_path, 50, "1 x Y", flops=8e6, ms=1)
    write_rate(tmp_path, 50, "1 x cpu", flops=8e6, ms=1, cpu="of another name")
    (rate,) = {rates.measured_rate("X", depth, tmp_path) for depth in (2, 10)}
    assert (rate.typical, rate.low, rate.high) == (2e9, 1e9, 8e9)
    assert rates.measured_rate("X", 100, tmp_path).typical == pytest.approx(3e9)  # half way, as depth multiplies
    assert rates.measured_rate("X", 10**5, tmp_path).typical == 4e9
    assert rates.measured_rate("Z", 10, tmp_path) is None
    assert rates.measured_rate("cpu", 10, tmp_path) is None
    assert len(rate.files) == 2


def shown(capsys, monkeypatch, *flags):
    """The program's output; the plan itself is always that of twelve runs on two devices."""
    made = planned()
    monkeypatch.setattr(
        plan,
        "plans_of",
        lambda job, device=None, **_: {"highway": dataclasses.replace(made, device=device or made.device)},
    )
    plan.main([*TINY, *flags])
    return " ".join(capsys.readouterr().out.split())


def test_what_was_not_measured_is_not_guessed(capsys, monkeypatch):
    out = shown(capsys, monkeypatch, "--device=a100", "--devices=256", "--config.num_runs=12")
    assert "not measured" in out
    assert "which stands in for NVIDIA A100" in out
    assert "warning: 256 devices for 12 runs" in out
    monkeypatch.setattr(plan, "measured_rate", lambda *_, **__: rates.Rate(1e6, 5e5, 2e6, 6, ("file.json",)))
    out = shown(capsys, monkeypatch, "--config.num_runs=11", "--devices=2")
    assert "not measured" not in out
    assert "file.json" in out
    assert "warning: 11 runs do not divide by 2 devices; 9% more are trained" in out
    monkeypatch.setattr(plan, "measured_rate", lambda *_, **__: rates.Rate(1e6, 5e5, 2e6, 100, ("file.json",)))
    assert "was measured with 100 runs in lockstep; with 6 it" in shown(capsys, monkeypatch, "--device=h100")


def test_a_device_that_is_too_small_is_warned_of(capsys, monkeypatch):
    monkeypatch.setitem(DEVICES, "h100", Device("small", 10**5))
    assert "do not fit into a device's 0.1 MiB" in shown(capsys, monkeypatch, "--device=h100")


def test_convolutional_networks_are_planned_without_their_data(capsys, tmp_path, monkeypatch):
    stages = '--config.stages=("conv 4 3x3 /4", "highway 3x3", "avgpool 2x2")'
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    plan.main(["--config=cifar10_gap", stages, "--config.num_runs=2", "--config.batch_size=500", "--device=tpu_v5e"])
    out = capsys.readouterr().out
    assert "2 runs of highway, 400 epochs of 100 steps, on 1 x TPU v5 lite" in out


@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache entry")
@pytest.mark.parametrize(
    "where",
    ["", pytest.param("--topology=v5e:2x2", marks=pytest.mark.skipif(not find_spec("libtpu"), reason="needs libtpu"))],
)
def test_what_devices_send_is_said_of_a_mesh(where, capsys, two_devices):
    flags = [where, "--config.mesh=(2, 2)"] if where else ["--config.mesh=(1, 2)"]
    plan.main([*TINY, *flags, "--config.num_runs=2", "--config.implementation=xla"])
    out = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert ", 2 to a batch" in out
    assert "fits yes" in out
    assert "a device sends in a step 1 all-reduce" in out, out
    assert ("their padding to tiles" in out) == bool(where)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device=h1000"], "--device is 'h1000'; it must be one of here, a100, h100"),
        (["--config.batch_size=1501"], "config.batch_size is 1501; it must be at most 1500"),
        (["--config.dataset=fashion_mnist"], "'fashion_mnist' is not prepared in .*TFDS_DATA_DIR"),
        (["--workdir=x"], "--workdir is not a flag"),
        (["--topology=v9:2x2"], "--topology is 'v9:2x2'; it must be a TPU slice, such as v5e:2x2"),
        (
            ["--topology=v5e:2x2", "--devices=4"],
            "--devices is 4, but --topology already sets the kind and number of devices",
        ),
        (
            ["--config.mesh=(1, 1)", "--device=h100"],
            r"config.mesh is \(1, 1\), but --device and --devices plan for one",
        ),
        (["--config.mesh=(1000, 1)"], r"config.mesh is \(1000, 1\); it must take at most \d+ devices"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(flags, message, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["plan", *TINY, *flags])
    with pytest.raises(SystemExit) as stopped:
        entry.run(plan.main, plan.__doc__)
    error = capsys.readouterr().err
    assert (stopped.value.code, error.count("\n")) == (2, 1)
    assert re.search(message, error), error

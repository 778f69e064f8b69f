"""The benchmark runs and writes what it says; what it measures is no test's business."""

import json
import multiprocessing.dummy
import operator
import sys
import threading
import types
from pathlib import Path

import jax
import pytest

from benchmarks import frameworks, jax_contenders, limit, population
from benchmarks.work import INPUTS, Work
from experiments.app import entry
from highway_jax import MLP

ROOT = Path(__file__).parents[1]
# In place of multiprocessing's.
THREADS = types.SimpleNamespace(Pipe=multiprocessing.dummy.Pipe, Process=threading.Thread)


def test_the_benchmark_writes_its_table_and_json(tmp_path, monkeypatch, capsys):
    rates = {"gemm_flops": limit.gemm_flops(64, 1), "copy_bytes": 1e9}  # those of the machine take seconds to measure
    monkeypatch.setattr(population, "measure_limit", operator.methodcaller("send", rates))
    work = ["--depth=3", "--runs=2", "--batch=4", "--width=5", "--steps=2", "--repetitions=2"]
    population.main([*work, "--only=ours", f"--out={tmp_path}"])
    assert "the limit" in capsys.readouterr().out
    result = json.loads((tmp_path / "population_cpu_depth3.json").read_text())
    assert set(result["contenders"]) == {"ours"}
    assert result["rates"] == rates and rates["gemm_flops"] > 0
    # Another contender, in a thread of this process.
    monkeypatch.setattr(population.multiprocessing, "get_context", lambda method: THREADS)
    another = population.compare(Work(depth=3, runs=2, batch=4, width=5, steps=2), ["jax_vmap"], 2)
    for figures in result["contenders"]["ours"], another["jax_vmap"]:
        assert 0 < figures["ms_min"] <= figures["ms"] <= figures["ms_max"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [("--only=mine", "--only has 'mine'"), ("--depth=1", "--depth is '1'"), ("--runs=0", "--runs")],
)
def test_a_mistake_is_one_line_and_status_2(flag, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["population", flag])
    with pytest.raises(SystemExit) as stop:
        entry.run(population.main, population.__doc__)
    errors = capsys.readouterr().err
    assert (stop.value.code, errors.count("\n")) == (2, 1)
    assert message in errors


def test_all_train_the_same_network():
    work = Work(depth=4, runs=1, batch=2, width=5, steps=1)
    ours = MLP(4, 5).init(jax.random.key(0), jax.numpy.zeros((1, INPUTS)))
    theirs = jax_contenders._init(work, jax.random.key(0))
    assert sum(p.size for p in jax.tree.leaves(ours)) == sum(p.size for p in jax.tree.leaves(theirs))


def test_operations_are_counted_as_xla_counts_them():
    # One further layer only: XLA counts a scan's body once.
    work = Work(depth=2, runs=1, batch=64, width=50, steps=1)
    params = jax_contenders._init(work, jax.random.key(0))
    batch = jax.numpy.zeros((64, INPUTS)), jax.numpy.zeros(64, int)
    analysis = jax.jit(jax.grad(jax_contenders._loss)).lower(params, *batch).compile().cost_analysis()
    assert 1 <= analysis["flops"] / work.flops() < 1.15  # the rest is elementwise


def test_frameworks_are_compared_on_the_examples_jobs(tmp_path, monkeypatch, capsys):
    """One that is not installed says so. Threads stand in for the processes: to start those takes as long."""
    monkeypatch.setattr(frameworks.multiprocessing, "get_context", lambda method: THREADS)
    monkeypatch.setattr(frameworks.parallel, "split_cpu", lambda: None)
    work = ["--runs=2", "--epochs=2", "--repetitions=1", "--job=regression", "--only=ours,turbanet"]
    frameworks.main([*work, f"--out={tmp_path}"])
    assert "seconds per epoch of all runs" in capsys.readouterr().out
    found = json.loads((tmp_path / "frameworks.json").read_text())["jobs"]["regression"]["contenders"]
    assert 0 < found["ours"]["seconds_min"] <= found["ours"]["seconds"] <= found["ours"]["first_seconds"]
    assert found["ours"]["lines"] == frameworks.lines_of_code("ours", "regression")
    assert 0 < found["ours"]["lines"] < frameworks.lines_of_code("lax_map", "regression")
    assert "seconds" in found["turbanet"] or "turbanet" in found["turbanet"]["error"]


def test_lines_are_counted_without_what_is_no_code():
    source = 'def f(x):\n    """One.\n\n    Two."""\n\n    # three\n    y = (\n        x  # four\n    )\n    return y\n'
    assert frameworks.code_lines(source) == 5

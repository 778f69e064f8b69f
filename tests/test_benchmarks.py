"""The benchmarks run and write their files; what they measure is not tested."""

import dataclasses
import json
import multiprocessing.dummy
import operator
import sys
import tarfile
import threading
import types
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from benchmarks import (
    accelerator,
    framework_contenders,
    frameworks,
    jax_contenders,
    limit,
    population,
    profile,
    roofline,
    steps,
    waiting,
)
from benchmarks.work import INPUTS, Work
from examples import tabular_regression
from experiments.app import entry
from experiments.jobs.rates import measured_rate
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
    ("program", "flags", "message"),
    [
        (population, ["--only=mine"], "--only has 'mine'"),
        (population, ["--depth=1"], "--depth is '1'"),
        (population, ["--runs=0"], "--runs"),
        (accelerator, ["--minutes=1"], "--output is missing"),
        (accelerator, ["--output=x", "--only=device,mine"], "--only has 'mine'"),
        (accelerator, ["--output=x", "--minutes=0"], "--minutes"),
        (accelerator, ["--output=x", "--minutes=nan"], "--minutes is nan"),
        (accelerator, ["--output=/dev/null"], "--output is /dev/null, which cannot be created"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(program, flags, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["program", *flags])
    with pytest.raises(SystemExit) as stop:
        entry.run(program.main, program.__doc__)
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
    """Contenders that are not installed are reported. Threads stand in for the processes, which start slowly."""
    monkeypatch.setattr(frameworks.multiprocessing, "get_context", lambda method: THREADS)
    monkeypatch.setattr(frameworks.parallel, "split_cpu", lambda: None)
    work = ["--runs=2", "--epochs=2", "--repetitions=1", "--job=regression", "--only=ours,torch_vmap,turbanet"]
    frameworks.main([*work, f"--out={tmp_path}"])
    assert "seconds per epoch of all runs" in capsys.readouterr().out
    found = json.loads((tmp_path / "frameworks.json").read_text())["jobs"]["regression"]["contenders"]
    assert 0 < found["ours"]["seconds_min"] <= found["ours"]["seconds"] <= found["ours"]["first_seconds"]
    assert 0 < found["ours"]["cpu_seconds_min"] <= found["ours"]["cpu_seconds"] <= found["ours"]["cpu_seconds_max"]
    assert found["ours"]["lines"] == frameworks.lines_of_code("ours", "regression")
    assert 0 < found["ours"]["lines"] < frameworks.lines_of_code("lax_map", "regression")
    for name, module in ("torch_vmap", "torch"), ("turbanet", "turbanet"):
        assert "cpu_seconds" in found[name] or f"No module named '{module}'" in found[name]["error"]


def test_contenders_by_hand_train_the_examples_network():
    x = jax.random.normal(jax.random.key(0), (4, 10))
    theirs, example = framework_contenders.Net(0.5), tabular_regression.Net(0.5)
    params = theirs.init(jax.random.key(1), x, train=False)
    assert (theirs.apply(params, x, train=False) == example.apply(params, x, train=False)).all()
    # In training a unit is kept with probability 1 - rate: means of the second layer stay as they are.
    ones = jax.numpy.ones((20_000, 10))
    _, found = framework_contenders.Net(0.25).apply(
        params, ones, train=True, rngs={"dropout": jax.random.key(2)}, capture_intermediates=True
    )
    layers = params["params"]
    first = jax.nn.relu(ones[:1] @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"])
    second = first @ layers["Dense_1"]["kernel"] + layers["Dense_1"]["bias"]
    dropped = found["intermediates"]["Dense_1"]["__call__"][0]
    np.testing.assert_allclose(dropped.mean(axis=0), second[0], atol=0.03)


def test_adamw_with_a_rate_for_every_run_is_optax_s():
    torch = pytest.importorskip("torch")
    runs, rates, decays = 3, np.float32([0.1, 0.01, 0.3]), np.float32([0.0, 0.5, 1.0])
    start, *steps_ = np.random.default_rng(0).normal(size=(4, runs, 2, 5)).astype(np.float32)
    steps_ = [gradient * np.float32([1, 1e-8, 1])[:, None, None] for gradient in steps_]  # epsilon counts in one run
    params = {"w": torch.tensor(start)}
    moments = {"w": (torch.zeros(start.shape), torch.zeros(start.shape))}
    for count, gradient in enumerate(steps_, start=1):
        gradients = {"w": torch.tensor(gradient)}
        framework_contenders.torch_adamw(params, gradients, moments, count, torch.tensor(rates), torch.tensor(decays))
    for run in range(runs):
        optimizer, alone = optax.adamw(rates[run], weight_decay=decays[run]), start[run]
        state = optimizer.init(alone)
        for gradient in steps_:
            updates, state = optimizer.update(gradient[run], state, alone)
            alone = optax.apply_updates(alone, updates)
        np.testing.assert_allclose(params["w"][run].numpy(), alone, rtol=1e-5, atol=1e-5)


def test_lines_are_counted_without_what_is_no_code():
    source = 'def f(x):\n    """One.\n\n    Two."""\n\n    # three\n    y = (\n        x  # four\n    )\n    return y\n'
    assert frameworks.code_lines(source) == 5


# In place of a step's process: it writes a row, and then takes too long with a child that ignores SIGTERM, or fails.
GOES_WRONG = """
import json, pathlib, subprocess, sys, time
options = dict(argument.lstrip("-").split("=") for argument in sys.argv[1:])
row = {"case": options["step"]}
if options["step"] == "overruns":
    ignoring = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(99)"
    child = subprocess.Popen([sys.executable, "-c", ignoring], stdout=subprocess.PIPE)
    child.stdout.readline()
    row["child"] = child.pid
pathlib.Path(options["work"], options["step"] + ".json").write_text(json.dumps([row]))
if options["step"] == "overruns":
    time.sleep(99)
raise RuntimeError("what went wrong")
"""


def test_a_step_that_overruns_or_fails_is_recorded_and_the_next_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerator, "COMMAND", (sys.executable, "-c", GOES_WRONG))
    monkeypatch.setattr(accelerator, "GRACE", 0.5)
    chosen = [accelerator.Step(name, steps.device, seconds) for name, seconds in (("overruns", 3), ("fails", 60))]
    monkeypatch.setattr(accelerator, "STEPS", chosen)
    accelerator.run(chosen, 5, tmp_path, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    late, failed = summary["steps"]["overruns"], summary["steps"]["fails"]
    assert (late["status"], late["rows"]) == ("out of time", 1)
    child = Path("/proc", str(summary["rows"]["overruns"][0]["child"]), "stat")
    assert not child.exists() or child.read_text().split()[2] == "Z"  # dead, if its parent has not heard of it yet
    assert (failed["status"], failed["rows"], failed["error"]) == ("failed", 1, "RuntimeError: what went wrong")
    with tarfile.open(tmp_path / "results.tar.gz") as tar:
        assert {"results/overruns.json", "results/fails.json", "results/fails.log"} <= set(tar.getnames())
    accelerator.run(chosen[:1], 0.1, tmp_path, tmp_path)  # later, when there is too little time
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [record["status"] for record in summary["steps"].values()] == ["no time left", "failed"]
    assert summary["rows"]["overruns"][0]["case"] == "overruns"


def test_rows_are_written_before_the_next_is_measured(tmp_path):
    def interrupted(settings):
        yield steps.attempt({"case": "a"}, lambda: {"value": 1})
        yield steps.attempt({"case": "b"}, lambda: {"value": 1 / 0})
        assert [row["case"] for row in steps.read_rows(tmp_path, "interrupted")] == ["a", "b"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        accelerator.measure(accelerator.Step("interrupted", interrupted, 1), steps.Settings(tmp_path, 1))
    assert steps.read_rows(tmp_path, "interrupted") == [
        {"case": "a", "value": 1},
        {"case": "b", "error": "ZeroDivisionError: division by zero"},
    ]


def test_what_is_measured_of_a_device_is_what_plans_are_made_of(tmp_path):
    times = {"ms": 0.5, "ms_min": 0.4, "ms_max": 0.8, "first_seconds": 3.0, "repetition_seconds": 1.5}
    rows = [
        {"case": name, "precision": precision, "work": dataclasses.asdict(work), **times, "device": "1 x X"}
        for name, precision, work in [
            ("ours", "float32", Work(100, 100, 100, 50, 30, 100)),
            ("ours", "float32", Work(100, 100, 100, 50, 30, 25)),
            ("ours_tf32", "tf32", Work(100, 100, 100, 50, 30, 100)),
            ("ours", "float32", Work(100, 1000, 100, 50, 10, 1000)),
            ("ours", "float32", Work(10, 100, 100, 50, 10, 100)),
            ("ours_xla", "float32", Work(100, 100, 100, 50, 30, 100)),
        ]
    ]
    rows[3]["ms"] = 0.25
    rows[5]["device"] = "1 x Y"  # of another session
    facts = [
        {"case": "device", "device": "1 x X"},
        {"case": "machine", "cpu": "any", "xla_flags": ""},
        {"case": "copy", "bytes_per_second": 1e12},
        {"case": "product", "precision": "float32", "flops_per_second": 1e13},
        {"case": "product", "precision": "tf32x3", "error": "no such thing here"},
    ]
    written = accelerator.tables({"device": facts, "ours_depth100": rows})
    names = "population_x_depth100.json", "population_x_depth100_runs1000.json", "population_x_depth10.json"
    assert set(written) == set(names)
    for name, table in written.items():
        (tmp_path / name).write_text(json.dumps(table))
    few = written["population_x_depth100.json"]
    assert set(few["contenders"]) == {"ours", "ours_tf32"}
    assert [row["runs_per_batch"] for row in few["lockstep"]] == [100, 25]
    for runs, typical, measured in (50, 5e-4, 100), (999, 5e-4, 100), (1000, 2.5e-4, 1000), (10**6, 2.5e-4, 1000):
        rate = measured_rate("X", 100, tmp_path, runs=runs)
        assert rate.typical == pytest.approx(few["flops_per_run_step"] / typical)
        assert rate.files == (names[2], names[measured == 1000])
        # At depth 10 nothing was measured with more.
        rate = measured_rate("X", 10, tmp_path, runs=runs)
        assert rate.typical == pytest.approx(written[names[2]]["flops_per_run_step"] / 5e-4)
        assert rate.runs == 100


def test_steps_measure_what_they_say(tmp_path, monkeypatch):
    """In this process, with tiny sizes."""
    monkeypatch.setattr(steps, "start_jax", lambda: None)  # tests have told JAX already
    settings = steps.Settings(tmp_path, 60)
    rows = list(steps.ours(settings, depth=20, sizes=[steps.Size(), steps.Size(), steps.Size(precision="tf32x3")]))
    assert [row["case"] for row in rows] == ["ours", "ours_tf32x3"]  # nothing twice
    assert 0 < rows[0]["ms_min"] <= rows[0]["ms"] <= rows[0]["ms_max"]
    if jax.default_backend() == "cpu":
        assert "TF32" in rows[1]["error"]
    (found,) = steps.profile(settings)
    assert 0 < found["largest"][0]["share"] <= 1 <= found["launches_a_step"]
    gradients = list(steps._gradients())
    assert len(gradients) > 3 and all(row["ok"] for row in gradients)


def test_kernels_of_a_gpu_are_told_from_what_the_host_does():
    def about(pid, name, tid=None):
        of = {"name": "process_name"} if tid is None else {"name": "thread_name", "tid": tid}
        return {"ph": "M", "pid": pid, "args": {"name": name}, **of}

    def ran(pid, tid, name, start, length):
        return {"ph": "X", "pid": pid, "tid": tid, "name": name, "ts": start, "dur": length}

    named = [about(1, "/device:GPU:0"), about(1, "Stream #7(Compute)", 7), about(1, "Stream #8(MemcpyD2D)", 8)]
    named += [about(1, "XLA Ops", 9), about(2, "/host:CPU"), about(2, "Stream reader", 7)]
    kernels = [
        ran(1, 7, "gemm", 100, 10),
        ran(1, 7, "gemm", 120, 30),
        ran(1, 8, "copy", 140, 20),
        ran(1, 7, "add", 190, 10),
    ]
    others = [ran(1, 9, "while", 100, 100), ran(2, 7, "launch", 90, 200)]
    found = profile.read([*named, *others, *reversed(kernels)])
    assert found.kernels == {"gemm": (40, 2), "copy": (20, 1), "add": (10, 1)}
    assert (found.span, found.busy, found.calls) == (100, 60, 4)  # two overlap for ten
    assert found.largest(1) == [("gemm", (40, 2))]


def test_loops_are_counted_as_often_as_they_run():
    def layers(x, kernels):
        return jax.lax.scan(lambda x, kernel: (x @ kernel, None), x, kernels)[0]

    def steps_(x, kernels):
        return jax.lax.scan(lambda x, _: (layers(x, kernels), None), x, length=3)[0]

    x, kernels = jax.numpy.zeros((16, 32)), jax.numpy.zeros((5, 32, 32))
    once, often = (roofline.executed(jax.jit(function).lower(x, kernels).compile()) for function in (layers, steps_))
    for counted, products in (once, 5), (often, 15):
        assert counted["flops"] == pytest.approx(products * 2 * 16 * 32 * 32, rel=0.01)
        assert counted["bytes"] > products * 4 * 32 * 32  # every kernel is read for its product
    assert often["bytes"] == pytest.approx(3 * once["bytes"], rel=0.1)


# As XLA compiles for a GPU: a slice of a large array on a stream of its own, and a library's product.
GPU_PROGRAM = """HloModule program, is_scheduled=true

%slice (p: f32[99,8,2], i: s32[]) -> f32[1,8,2] {
  %p = f32[99,8,2]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = f32[1,8,2]{2,1,0} dynamic-slice(%p, %i, %zero, %zero), dynamic_slice_sizes={1,8,2}
}

ENTRY %main (k: f32[99,8,2], index: s32[], x: f32[4,8]) -> f32[4,2] {
  %k = f32[99,8,2]{2,1,0} parameter(0)
  %index = s32[] parameter(1)
  %x = f32[4,8]{1,0} parameter(2)
  %begun = ((f32[99,8,2]{2,1,0}, s32[]), f32[1,8,2]{2,1,0}, u32[]) fusion-start(%k, %index), kind=kLoop, calls=%slice
  %kernel = f32[1,8,2]{2,1,0} fusion-done(%begun)
  %flat = f32[8,2]{1,0} bitcast(%kernel)
  %product = (f32[4,2]{1,0}, s8[4096]{0}) custom-call(%x, %flat), custom_call_target="__cublas$gemm"
  ROOT %y = f32[4,2]{1,0} get-tuple-element(%product), index=0
}
"""


def test_a_gpus_slices_and_library_calls_are_counted_by_what_they_move():
    counted = roofline.executed(types.SimpleNamespace(as_text=lambda: GPU_PROGRAM))
    sliced, product = 4 * (8 * 2) * 2, 4 * (4 * 8 + 8 * 2 + 4 * 2)  # read and written; without working memory
    assert counted["library_calls"] == 1
    assert sliced + product <= counted["bytes"] <= sliced + product + 8  # and the index


def test_what_one_waits_for_is_counted_once(monkeypatch):
    now = 100.0
    monkeypatch.setattr(waiting, "time", types.SimpleNamespace(time=lambda: now))
    parts = waiting.Parts()

    class Search:
        def train(self):
            nonlocal now
            now += 1
            self.compile()
            now += 2
            self.compile()
            return "trained"

        def compile(self):
            nonlocal now
            now += 5
            parts.heard("/jax/core/compile/jaxpr_trace_duration", 2.0)  # it traced for the last two seconds
            now += 4
            parts.heard("/jax/core/compile/backend_compile_duration", 3.0, fun_name="f")
            parts.heard("/jax/another", 1.0)

    parts.within("training", Search, "train")
    assert Search().train() == "trained"
    assert parts.seconds == {"training": 11.0, "tracing": 4.0, "compiling": 6.0} and now == 121.0
    assert parts.programs == {"f": 6.0}
    threading.Thread(target=parts.add, args=("training", 0.0)).start()
    assert parts.seconds["training"] == 11.0

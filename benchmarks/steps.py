"""The steps of `benchmarks.accelerator`. A step yields JSON rows; each row is written before the next is measured.

On a CPU the sizes are tiny and only show that everything works.
"""

import contextlib
import csv
import dataclasses
import functools
import gc
import importlib.util
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.work import PRECISIONS, Work
from highway_jax.files import first_line

Row = dict[str, Any]
ROOT = Path(__file__).parents[1]
WIDTH, BATCH = 50, 100

# Relative tolerances of the golden curves by epoch: the effect of rounding in tests/test_golden.py, with room for a
# device's own exp and tanh. Runs at the edge of stability, whose rounding errors grow to the size of the loss, are left
# out.
CLOSE = (1e-5, 1e-5, 1e-4, 1e-3)
EDGE = {("highway", 5), ("plain", 1), ("plain", 4), ("plain", 5)}
# Relative errors (Frobenius). The rounding of float32 products alone gives 3e-7; TF32 would give 3e-4.
FLOAT32 = 2e-6
GRADIENT = 2e-5


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a step.

    Attributes:
      work: the folder for files, shared by all steps.
      seconds: the time that the step may take.
    """

    work: Path
    seconds: float


def attempt(case: Row, measure: Callable[[], Row]) -> Row:
    """Measure a case; returns the case with its results, or with the first line of the error."""
    try:
        return case | measure()
    except Exception as error:
        return case | {"error": first_line(error)}
    finally:
        gc.collect()  # frees a device's memory


def start_jax() -> None:
    """Start JAX with the programs' settings. JAX reserves most of a GPU's memory, so PyTorch's steps do without it."""
    import jax

    from experiments.app import settings

    settings.pin()
    if on_cpu():  # most of the time is compilation
        jax.config.update("jax_disable_most_optimizations", True)


def on_cpu() -> bool:
    """Whether JAX has no accelerator."""
    import jax

    return jax.default_backend() == "cpu"


def device(settings: Settings) -> Iterator[Row]:
    """Facts about the device, and its measured rates."""
    start_jax()
    import jax

    from benchmarks import limit, population
    from experiments.app.machine import hardware

    first = jax.devices()[0]
    memory = (first.memory_stats() or {}).get("bytes_limit")
    yield {"case": "device", "device": population.device("ours"), "platform": first.platform, "memory": memory}
    yield {"case": "machine", **hardware(), "xla_flags": os.environ.get("XLA_FLAGS", "")}
    query = "name,memory.total,driver_version,power.limit,clocks.max.sm,clocks.max.memory"
    yield attempt({"case": "nvidia-smi"}, lambda: {"facts": _run("nvidia-smi", f"--query-gpu={query}", "--format=csv")})
    repetitions = 1 if on_cpu() else 5
    yield attempt({"case": "copy"}, lambda: {"bytes_per_second": limit.copy_bytes(repetitions)})
    for precision in PRECISIONS:
        size = 256 if on_cpu() else None
        measure = functools.partial(limit.gemm_flops, size, repetitions, precision)
        yield attempt({"case": "product", "precision": precision}, lambda m=measure: {"flops_per_second": m()})


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def correctness(settings: Settings) -> Iterator[Row]:
    """Compare products, gradients and curves with those of the CPU."""
    start_jax()
    yield from _products()
    yield from _gradients()
    yield from _curves()


def _products() -> Iterator[Row]:
    """Compare products in every precision with float64."""
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    for shape in ((128, 128, 128),) if on_cpu() else ((1024, 1024, 1024), (100, 100, 50, 100)):
        *batch, m, k, n = shape
        a, b = (rng.standard_normal((*batch, *sides)).astype(np.float32) for sides in ((m, k), (k, n)))
        exact = a.astype(np.float64) @ b
        for name, precision in PRECISIONS.items():

            def measure(a=a, b=b, exact=exact, name=name, precision=precision) -> Row:
                with jax.default_matmul_precision(precision):
                    error = _distance(jax.jit(jnp.matmul)(a, b), exact)
                return {"error_to_float64": error} | ({"ok": error < FLOAT32} if name == "float32" else {})

            yield attempt({"case": "product", "shape": shape, "precision": name}, measure)


def _gradients() -> Iterator[Row]:
    """Compare gradients in float32 on the device with float64 on the CPU."""
    import flax.linen as nn
    import jax

    from highway_jax import HighwayConv, HighwayDense, HighwayStack
    from highway_jax.native import IMPLEMENTATIONS
    from highway_jax.stack import fused
    from highway_jax.stack.kinds import KINDS, named

    rng = np.random.default_rng(0)
    flat, images = rng.standard_normal((100, WIDTH)), rng.standard_normal((20, 8, 8, 16))
    models: list[tuple[Row, nn.Module, np.ndarray]] = [
        ({"layer": "dense"}, HighwayDense(), flat),
        ({"layer": "convolution"}, HighwayConv((3, 3)), images),
    ]
    for kind in ("highway",) if on_cpu() else KINDS:
        for implementation in IMPLEMENTATIONS:
            if implementation == "fused" and not fused.supports(named(kind)):
                continue
            stack = HighwayStack(20, kind, "tanh", -1.0, implementation=implementation)
            models.append(({"layer": "stack", "kind": kind, "implementation": implementation}, stack, flat))

    cases: list[tuple[Row, Callable[[], Row]]] = []
    for case, model, x in models:

        def measure(model=model, x=x, case=case) -> Row:
            reference = model.clone(implementation="xla") if "implementation" in case else model
            target = np.random.default_rng(1).standard_normal(x.shape)

            def loss(model, params, x, target):
                return ((model.apply(params, x) - target) ** 2).mean()

            x32 = x.astype(np.float32)
            params = jax.tree.map(np.asarray, model.init(jax.random.key(0), x32))
            with jax.default_matmul_precision("float32"):
                gradient = jax.jit(jax.grad(functools.partial(loss, model), (0, 1)))
                here = jax.device_get(gradient(params, x32, target.astype(np.float32)))
            cpu = jax.devices("cpu")[-1]
            with jax.enable_x64(True), jax.default_device(cpu):
                wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, x32, target.astype(np.float32)))
                there = jax.device_get(jax.jit(jax.grad(functools.partial(loss, reference), (0, 1)))(*wide))
            error = max(map(_distance, jax.tree.leaves(here), jax.tree.leaves(there)))
            return {"error_to_float64": error, "ok": error < GRADIENT}

        cases.append(({"case": "gradients", **case}, measure))
    with ThreadPoolExecutor() as pool:  # nearly all of the time is compilation
        yield from pool.map(attempt, *zip(*cases, strict=True))


def _distance(found: Any, expected: Any) -> float:
    """The relative error of an array in the Frobenius norm."""
    expected = np.asarray(expected, np.float64)
    return float(np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected))


def _curves() -> Iterator[Row]:
    """Compare a search on the digits, with runs in lockstep, with the golden curves and with the CPU."""
    import jax

    from experiments.configs import loading
    from experiments.jobs.making import job_of
    from highway_jax import parallel, population

    runs = 6 if on_cpu() else 100
    changes = {"num_runs": str(runs), "epochs": "4", "evaluate_every": "4"}
    golden = list(csv.DictReader((ROOT / "tests/golden/digits_depth10.csv").open(newline="")))

    def losses(network: str, device: jax.Device, runs_per_batch: int, implementation: str) -> np.ndarray:
        config = loading.load("digits_depth10", changes | {"implementation": implementation}).config
        job = job_of(config)
        mesh = parallel.runs_mesh([device])
        with jax.default_device(device), jax.default_matmul_precision(config.matmul_precision):
            result = population.fit(**job.arguments(network), mesh=mesh, runs_per_batch=runs_per_batch)
        return result.curves["train_loss"]

    def differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            relative = np.abs(a - b) / np.abs(b)
        return np.where(np.isfinite(relative), relative, np.where(a == b, 0, np.inf))  # both may have diverged

    device, cpu = jax.devices()[0], jax.devices("cpu")[-1]
    curves: dict[str, np.ndarray] = {}

    def against_golden(network: str) -> Row:
        curves[network] = losses(network, device, runs, "auto")
        rows = [row for row in golden if row["network"] == network]
        expected = np.array([float(row["train_loss"]) for row in rows]).reshape(-1, 4)
        judged = [run for run in range(len(expected)) if (network, run) not in EDGE]
        worst = differences(curves[network][: len(expected)], expected)[judged].max(axis=0)
        return {"worst_by_epoch": worst.tolist(), "allowed": CLOSE, "ok": bool((worst <= CLOSE).all())}

    def against_cpu(name: str) -> Row:
        if "cpu" not in curves:
            curves["cpu"] = losses("highway", cpu, 1, "xla")
        far = differences(curves[name], curves["cpu"])
        return {
            "median_by_epoch": np.median(far, axis=0).tolist(),
            "within_1e-4_by_epoch": (far <= 1e-4).mean(axis=0).tolist(),
        }

    def lockstep_on_cpu() -> Row:
        curves["lockstep"] = losses("highway", cpu, runs, "xla")
        return against_cpu("lockstep")

    for network in ("highway",) if on_cpu() else ("highway", "plain"):
        about = {"network": network, "runs": runs}
        yield attempt({"case": "curves against the golden ones", **about}, functools.partial(against_golden, network))
    about = {"network": "highway", "runs": runs}
    yield attempt({"case": "curves against the CPU's", **about}, functools.partial(against_cpu, "highway"))
    if not on_cpu():
        yield attempt({"case": "the CPU in lockstep against itself", **about}, lockstep_on_cpu)


@dataclasses.dataclass(frozen=True)
class Size:
    """A size of the work.

    Attributes:
      runs: the number of runs.
      precision: the precision of products.
      runs_per_batch: the number of runs in lockstep; None for all of them.
      implementation: the implementation of the layers; None for the one that a search chooses.
    """

    runs: int = 100
    precision: str = "float32"
    runs_per_batch: int | None = None
    implementation: str | None = None


# Our own kernels always multiply in float32, so other precisions need XLA.
FEW = (Size(), Size(1000))
ALL = (
    *(Size(), Size(1000), Size(implementation="xla"), Size(runs_per_batch=50), Size(1000, runs_per_batch=250)),
    *(Size(precision=name, implementation="xla") for name in ("tf32", "tf32x3", "bf16")),
    *(Size(runs_per_batch=25), Size(1000, runs_per_batch=100), Size(1000, implementation="xla")),
    *(Size(1000, name, implementation="xla") for name in ("tf32", "tf32x3", "bf16")),
)


def work_of(depth: int, runs: int, runs_per_batch: int | None = None) -> Work:
    """The work at a depth: the paper's sizes, or tiny ones on a CPU."""
    if on_cpu():
        few = 2 if runs <= 100 else 4
        return Work(max(2, depth // 10), few, 10, 8, 2, few if runs_per_batch is None else 1)
    return Work(depth, runs, BATCH, WIDTH, 30 if runs <= 100 else 10, runs_per_batch or runs)


def ours(settings: Settings, depth: int, sizes: Sequence[Size]) -> Iterator[Row]:
    """Time a training step of ours."""
    start_jax()
    from benchmarks import jax_contenders, population
    from highway_jax.stack import fused

    _cache(settings, depth, fresh=True)
    done = set()
    for size in sizes[:3] if on_cpu() else sizes:
        work = work_of(depth, size.runs, size.runs_per_batch)
        implementation = size.implementation or fused.choose(work.width)
        case = {"precision": size.precision, "implementation": implementation, "work": dataclasses.asdict(work)}
        if repr(case) in done:
            continue
        done.add(repr(case))

        def measure(size=size, work=work, implementation=implementation) -> Row:
            trained = jax_contenders.Ours(work, implementation, size.precision)
            times = population.timed(trained.epoch, work.runs * work.steps, 2 if on_cpu() else 3)
            return times | {"device": population.device("ours")}

        name = "ours" if size.implementation is None else f"ours_{implementation}"
        name += f"_{size.precision}" * (size.precision != "float32")
        yield attempt({"case": name} | case, measure)


def torch(settings: Settings, depth: int, names: Sequence[str]) -> Iterator[Row]:
    """Time a training step of PyTorch's contenders; those whose names end in "_tf32" multiply in TF32."""
    import torch

    from benchmarks import population

    gpu = torch.cuda.is_available()
    for name in names:
        precision = "tf32" if name.endswith("_tf32") else "float32"
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        work = Work(depth, 100, BATCH, WIDTH, 10, 100) if gpu else Work(max(2, depth // 10), 2, 10, 8, 2, 2)
        case = {"case": name, "precision": precision, "work": dataclasses.asdict(work)}

        def measure(name=name, work=work) -> Row:
            go, pairs = population.contender(name.removesuffix("_tf32"))(work)
            return population.timed(go, pairs, 3) | {"device": population.device("torch")}

        yield attempt(case, measure)
        if gpu:
            gc.collect()
            torch.cuda.empty_cache()


def _implementations(work: Work) -> list[str]:
    """The implementation that a search would choose, and XLA."""
    from highway_jax.stack import fused

    return ["xla"] if on_cpu() else list(dict.fromkeys((fused.choose(work.width), "xla")))


def roofline(settings: Settings) -> Iterator[Row]:
    """Divide the compiled step's operations and bytes by the measured rates, and compare with the measured time."""
    start_jax()
    from benchmarks import jax_contenders, roofline
    from highway_jax.stack import fused

    rates = read_rates(read_rows(settings.work, "device"))
    if not rates:
        raise RuntimeError("the device's rates are missing; the step 'device' must come first")
    timed = read_rows(settings.work, "ours_depth100")
    _cache(settings, 100)
    for runs, precision in ((100, "float32"), (1000, "float32"))[: 1 if on_cpu() else None]:
        work = work_of(100, runs)
        implementation = fused.choose(work.width)
        case = {"case": "roofline", "precision": precision, "work": dataclasses.asdict(work)}

        def measure(work=work, precision=precision, implementation=implementation) -> Row:
            trained = jax_contenders.Ours(work, implementation, precision)
            compiled = trained.compiled()
            trips = -(-work.runs // trained.runs_per_batch)
            pairs = work.runs * work.steps
            executed = {name: value / pairs for name, value in roofline.executed(compiled, trips).items()}
            memory = compiled.memory_analysis()
            row: Row = {
                "implementation": implementation,
                "least_per_run_step": {"flops": work.flops(), "bytes": work.bytes()},
                "compiled_per_run_step": executed,
                "memory": {
                    "arguments": memory.argument_size_in_bytes,
                    "temporaries": memory.temp_size_in_bytes,
                },
                "runs_per_batch_of_a_search": trained.group.runs_per_batch(work.runs, trained.free),
            }
            rate = rates["gemm_flops" if precision == "float32" else f"gemm_flops_{precision}"]
            row["ms_of_products"] = 1e3 * work.flops() / rate
            row["ms_of_least_bytes"] = 1e3 * work.bytes() / rates["copy_bytes"]
            row["ms_of_compiled_bytes"] = 1e3 * executed["bytes"] / rates["copy_bytes"]
            measured = next(
                (
                    found["ms"]
                    for found in timed
                    if found["work"] == dataclasses.asdict(work)
                    and (found["precision"], found["implementation"]) == (precision, implementation)
                    and "ms" in found
                ),
                None,
            )
            if measured:
                row["ms_measured"] = measured
                row["measured_over_roofline"] = measured / max(row["ms_of_products"], row["ms_of_least_bytes"])
            return row

        yield attempt(case, measure)


def profile(settings: Settings) -> Iterator[Row]:
    """The largest kernels of a training step, the number of launches, and the idle time."""
    start_jax()
    from benchmarks import jax_contenders, profile

    _cache(settings, 100)
    work = dataclasses.replace(work_of(100, 100), steps=2 if on_cpu() else 5)
    for implementation in _implementations(work):

        def measure(implementation=implementation) -> Row:
            trained = jax_contenders.Ours(work, implementation, "float32")
            trained.epoch()
            found = profile.profiled(trained.epoch)
            if not found.span and not on_cpu():
                raise RuntimeError("the trace has no streams of a GPU")
            largest = [
                {
                    "kernel": name[:200],
                    "microseconds_a_call": time / calls,
                    "calls_a_step": calls / work.steps,
                    "microseconds_a_step": time / work.steps,
                    "share": time / found.total,
                }
                for name, (time, calls) in found.largest(10)
            ]
            row: Row = {"launches_a_step": found.calls / work.steps, "largest": largest}
            row["microseconds_a_step"] = found.total / work.steps
            if found.span:
                row["idle"] = 1 - found.busy / found.span
                row["span_microseconds_a_step"] = found.span / work.steps
            return row

        case = {"case": "profile", "implementation": implementation, "work": dataclasses.asdict(work)}
        yield attempt(case, measure)


def command_buffers(settings: Settings) -> Iterator[Row]:
    """Time a training step with this process's XLA_FLAGS."""
    start_jax()
    from benchmarks import jax_contenders, population

    work = work_of(100, 100)
    for implementation in _implementations(work):

        def measure(implementation=implementation) -> Row:
            trained = jax_contenders.Ours(work, implementation, "float32")
            return population.timed(trained.epoch, work.runs * work.steps, 3)

        flags = os.environ.get("XLA_FLAGS", "")
        case = {"case": "command buffers", "xla_flags": flags, "implementation": implementation}
        yield attempt(case | {"work": dataclasses.asdict(work)}, measure)


def convnets(settings: Settings, contender: str) -> Iterator[Row]:
    """Images per second of convolutional networks in training."""
    from benchmarks import convnet, population

    if contender == "ours":
        start_jax()
        tiny, several = on_cpu(), (1, 5)
    else:
        import torch

        tiny, several = not torch.cuda.is_available(), (1,)
    batch, steps = (2, 1) if tiny else (100, 20)
    networks, precisions = ("mnist_conv32", "cifar10_gap"), ("float32", "tf32")
    for precision, network, runs in itertools.product(precisions, networks, several):
        if tiny and (network, precision, runs) != ("mnist_conv32", "float32", several[-1]):
            continue

        def measure(network=network, precision=precision, runs=runs) -> Row:
            how = {"precision": precision} | ({"runs": runs} if contender == "ours" else {})
            go = getattr(convnet, contender)(network, batch, steps, **how)
            times = population.timed(go, runs * batch * steps, 1 if tiny else 3)
            return {
                "images_per_second": 1e3 / times["ms"],
                "images_per_second_min": 1e3 / times["ms_max"],
                "images_per_second_max": 1e3 / times["ms_min"],
                "first_seconds": times["first_seconds"],
            }

        case = {"case": f"convnet_{contender}", "network": network, "precision": precision, "runs": runs}
        yield attempt(case | {"batch": batch}, measure)


SEARCHED = ("runs.csv", "curves.csv", "summary.json", "provenance.json")


def search(settings: Settings) -> Iterator[Row]:
    """Run the paper's search at depth 100 for the time that is left; the same command resumes it."""
    prepared = Path(os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets", "mnist")
    mnist = prepared.is_dir() and importlib.util.find_spec("tensorflow_datasets") is not None
    config, changes = "mnist_depth100" if mnist else "digits_depth50", []
    if _platform(settings) == "cpu":
        config, changes = "digits_depth10", ["--config.num_runs=4", "--config.epochs=3"]
    directory = settings.work / "search" / config
    case: Row = {"case": "search", "config": config}
    if not mnist:
        case["note"] = f"{prepared} is not prepared MNIST, or tensorflow_datasets is not installed: the digits instead"
    command = [sys.executable, "-m", "experiments.search", f"--config={config}", "--config.networks=highway"]
    signal.signal(signal.SIGTERM, lambda number, frame: None)  # the search gets it, too, and stops in order
    process = subprocess.Popen([*command, *changes, f"--workdir={directory}"], cwd=ROOT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(5.0, settings.seconds - 20))
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)  # it stops after the epoch, with a checkpoint
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(18)
    kept = settings.work / "searched"
    kept.mkdir(exist_ok=True)
    for name in SEARCHED:
        if (directory / name).exists():
            shutil.copy(directory / name, kept / f"{config}-{name}")
    status = process.poll()
    found = case | {"status": status} | _searched(kept / f"{config}-curves.csv")
    yield found if status in (0, 128 + signal.SIGTERM) else found | {"error": f"the search ended with status {status}"}


def _platform(settings: Settings) -> str:
    """JAX's platform, from the step `device` or from another process: this process leaves the device to the search."""
    found = (row["platform"] for row in read_rows(settings.work, "device") if row["case"] == "device")
    ask = (sys.executable, "-c", "import jax; print(jax.default_backend())")
    return next(found, "") or _run(*ask)


def _searched(curves: Path) -> Row:
    """The epochs and the best loss of a search."""
    if not curves.exists():
        return {}
    rows = list(csv.DictReader(curves.open(newline="")))
    epochs = max((int(row["epoch"]) for row in rows), default=0)
    return {"epochs": epochs, "best_loss": min((float(row["train_loss"]) for row in rows), default=None)}


def _cache(settings: Settings, depth: int, fresh: bool = False) -> None:
    """Cache compiled programs for later steps; `fresh` empties the cache, for steps that time first calls."""
    import jax

    if on_cpu():
        return
    folder = settings.work / f"compiled{depth}"
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def read_rows(work: Path, step: str) -> list[Row]:
    """The rows that a step has written so far."""
    path = work / f"{step}.json"
    return json.loads(path.read_text()) if path.exists() else []


def read_rates(device_rows: list[Row]) -> dict[str, float]:
    """The rates measured by the step `device`, with the names of `benchmarks.population`."""
    rates = {}
    for row in device_rows:
        if "bytes_per_second" in row:
            rates["copy_bytes"] = row["bytes_per_second"]
        elif "flops_per_second" in row:
            suffix = "" if row["precision"] == "float32" else f"_{row['precision']}"
            rates[f"gemm_flops{suffix}"] = row["flops_per_second"]
    return rates

"""What training costs a device: its memory, from the compiled program, and its time, from measured rates."""

import dataclasses
import importlib.util
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.interpreters.partial_eval import dce_jaxpr
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.app.machine import hardware
from experiments.jobs.job import Job
from highway_jax import parallel, population
from highway_jax.population import memory

RESULTS = Path(__file__).parents[2] / "benchmarks/results"


class Device(NamedTuple):
    """A kind of device.

    Attributes:
      kind: what JAX calls it (`device_kind`), and with it the files in benchmarks/results.
      memory: bytes that JAX will use of its memory.
      topology: the smallest slice with such a device, where its compiler can do without the device.
    """

    kind: str
    memory: int
    topology: str | None = None


# Memory is from the makers' data sheets, of which JAX takes three quarters on a GPU by default
# (XLA_PYTHON_CLIENT_MEM_FRACTION).
DEVICES = {
    "a100": Device("NVIDIA A100-SXM4-80GB", 60 * 10**9),
    "h100": Device("NVIDIA H100 80GB HBM3", 60 * 10**9),
    "h200": Device("NVIDIA H200", 105 * 10**9),
    "l4": Device("NVIDIA L4", 18 * 10**9),
    "t4": Device("Tesla T4", 12 * 10**9),
    "tpu_v5e": Device("TPU v5 lite", 16 * 10**9, "v5e:2x2"),
    "tpu_v5p": Device("TPU v5", 95 * 10**9, "v5p:2x2x1"),
    "tpu_v6e": Device("TPU v6 lite", 32 * 10**9, "v6e:2x2"),
}


def this_device() -> Device:
    """The device of this machine. A CPU's share of the memory is that of a core."""
    device = jax.devices()[0]
    memory = (device.memory_stats() or {}).get("bytes_limit")
    if memory is None:
        memory = parallel.host_memory() // jax.local_device_count()
    return Device(device.device_kind, memory)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one kind of network needs of a device; memory in bytes.

    Attributes:
      parameters: of a run.
      runs: trained on the device, one part after another, the fullest device's.
      resident: of them in memory at once.
      runs_per_batch: of those in lockstep.
      population: the resident runs' parameters and optimizer state.
      data: both splits.
      program: what the compiled epoch, or evaluation if that is more, needs beside population and data.
      steps: of single runs on the device, in all.
      flops: a run's in one step, in matrix products and convolutions.
      checkpoint: of all devices' resident runs, on disk.
    """

    parameters: int
    runs: int
    resident: int
    runs_per_batch: int
    population: int
    data: int
    program: int
    steps: int
    flops: int
    checkpoint: int

    @property
    def memory(self) -> int:
        """All of it."""
        return self.population + self.data + self.program

    def seconds(self, rate: float) -> float:
        """How long the device trains at a rate in FLOP/s."""
        return self.steps * self.flops / rate


def make_plan(job: Job, network: str, device: Device, devices: int) -> Plan:
    """Plan one kind of a job's networks; of its data, shapes and dtypes are enough.

    Raises:
      population.RunTooLarge: if a device cannot hold a single run.
    """
    config = job.config
    with jax.default_matmul_precision(config.matmul_precision):
        target = compiler_of(device)
        mesh = parallel.runs_mesh([target])
        group = job.group(network, mesh)
        run = group.shapes
        if (state := memory.num_bytes(run)) > device.memory:
            raise population.RunTooLarge(state, device.memory)
        need = group.memory_of_a_run(target)

        runs, splits = -(-config.num_runs // devices), memory.num_bytes((job.train, *job.evaluate.values()))
        free = None if device.kind == "cpu" else device.memory - splits
        side_by_side = config.runs_in_memory or memory.runs_in_memory(run, config.num_runs, devices, free)
        resident = min(runs, -(-side_by_side // devices))
        if config.runs_per_batch:
            runs_per_batch = min(config.runs_per_batch, resident)
        elif device.kind == "cpu":
            runs_per_batch = 1
        else:
            runs_per_batch = memory.runs_in_lockstep(need, resident, device.memory - splits - resident * need.state)

        members = _placed(run, mesh, PartitionSpec(parallel.RUNS), resident)
        batches = _placed(group.batches, mesh, PartitionSpec())
        peak = _memory(group.programs.train.lower(members, batches, runs_per_batch))
        for split in job.evaluate.values():
            program = group.programs.evaluate.lower(members, _placed(split, mesh, PartitionSpec()), runs_per_batch)
            peak = max(peak, _memory(program) - memory.num_bytes(split))

        key = jax.random.key(0)
        step = jax.make_jaxpr(group.task.step)(run.hp, run.state, group.batch, key).jaxpr
    return Plan(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(run.state.params)),
        runs=runs,
        resident=resident,
        runs_per_batch=runs_per_batch,
        population=resident * need.state,
        data=splits,
        program=peak - resident * need.state,
        steps=group.search.steps_per_epoch * sum(-(-step.runs // devices) for step in group.search.plan(side_by_side)),
        flops=matmul_flops(dce_jaxpr(step, [True] * len(step.outvars))[0]),
        checkpoint=devices * resident * need.state + 4 * config.num_runs * config.epochs * (1 + len(job.evaluate)),
    )


def _placed(tree: Any, mesh: Mesh, spec: PartitionSpec, *leading: int) -> Any:
    """Shapes and dtypes of what will live on a mesh, with further leading axes."""
    place = NamedSharding(mesh, spec)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*leading, *leaf.shape), leaf.dtype, sharding=place), tree)


def compiler_of(device: Device) -> jax.Device:
    """The device to compile for: one like it where there is a compiler for that, or this machine's."""
    if device.topology is None or importlib.util.find_spec("libtpu") is None:
        return jax.devices()[0]
    # Nobody is to be asked which machine this is.
    os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_ACCELERATOR_TYPE="none", TPU_WORKER_HOSTNAMES="localhost")
    return topologies.get_topology_desc(topology_name=device.topology, platform="tpu").devices[0]


def _memory(program: jax.stages.Lowered) -> int:
    """Bytes of a device's memory while a program runs: its arguments, its results and what is between."""
    usage = program.compile().memory_analysis()
    assert usage is not None
    # Results that take the place of a donated argument count once.
    results = usage.output_size_in_bytes - usage.alias_size_in_bytes
    return usage.argument_size_in_bytes + results + usage.temp_size_in_bytes


def matmul_flops(jaxpr: Any) -> int:
    """Floating-point operations of a program's matrix products and convolutions, scans counted in full.

    XLA's `cost_analysis` counts a scan's body once, whatever its length. Elementwise operations are not counted, the
    zeros that pad a convolution are.
    """
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name in ("dot_general", "conv_general_dilated"):
            left, right, out = (variable.aval.shape for variable in (*equation.invars, *equation.outvars))
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            total += 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            taps = math.prod(right) // right[params["dimension_numbers"].rhs_spec[0]]
            total += 2 * math.prod(out) * taps // math.prod(params["lhs_dilation"])
        else:
            inner = [matmul_flops(body) for body in _bodies(params.values())]
            # Of a branch for every platform, only one is taken.
            total += max(inner) if name == "cond" else params.get("length", 1) * sum(inner)
    return total


def _bodies(values: Iterable[Any]) -> list[Any]:
    """The programs among an equation's parameters."""
    found = []
    for value in values:
        if isinstance(value, (tuple, list)):
            found += _bodies(value)
        elif hasattr(value, "eqns"):
            found.append(getattr(value, "jaxpr", value))
    return found


@dataclasses.dataclass(frozen=True)
class Rate:
    """What a device was measured to do, in FLOP/s; `typical` at the depth asked for, low and high at any.

    Attributes:
      files: where that is from.
    """

    typical: float
    low: float
    high: float
    files: tuple[str, ...]


def measured_rate(kind: str, depth: int, results: Path = RESULTS, contender: str = "ours") -> Rate | None:
    """The rate at which a kind of device trains fully connected networks, or None if nobody has measured it.

    Between the depths that were measured it is interpolated, beyond them it is the outermost's. A CPU counts as
    measured if one of its name was. The contender is one of `benchmarks.population`: "ours", or "ours_xla".
    """
    points = []
    for path in sorted(results.glob("population_*.json")):
        result = json.loads(path.read_text())
        ours = result["contenders"].get(contender, {})
        count, _, measured = ours.get("device", "").partition(" x ")
        if measured == kind and (kind != "cpu" or result["machine"]["cpu"] == hardware()["cpu"]):
            work = 1e3 * result["flops_per_run_step"] / int(count)
            rates = (work / ours[key] for key in ("ms", "ms_max", "ms_min"))
            points.append((result["work"]["depth"], *rates, path.name))
    if not points:
        return None
    depths, typical, low, high, files = zip(*sorted(points), strict=True)
    return Rate(float(np.interp(math.log(depth), np.log(depths), typical)), min(low), max(high), files)

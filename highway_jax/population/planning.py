"""What a search takes of a device, before anything is trained: memory and operations, from the compiled programs."""

import dataclasses
import importlib.util
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.interpreters.partial_eval import dce_jaxpr
from jax.sharding import NamedSharding, PartitionSpec

from highway_jax import parallel
from highway_jax.population.arguments import check_is, checked_integer
from highway_jax.population.execution import Execution
from highway_jax.population.groups import Groups
from highway_jax.population.memory import RunTooLarge, num_bytes
from highway_jax.population.programs import Group
from highway_jax.population.search import Search
from highway_jax.population.space import Space
from highway_jax.population.task import Task


class Device(NamedTuple):
    """A kind of device.

    Attributes:
      kind: what JAX calls it (`device_kind`); "cpu" is a core.
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
    there = (device.memory_stats() or {}).get("bytes_limit")
    if there is None:
        there = parallel.host_memory() // jax.local_device_count()
    return Device(device.device_kind, there)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a search takes of each of its devices, the fullest one's share; printed, an account of it.

    Attributes:
      device: their kind.
      devices: how many share the runs.
      compiled_for: the kind of device whose compiler was asked.
      parameters: how many numbers a run learns (its state's `params`; of a state without, all), the largest group's.
      runs: trained on the device, one part after another.
      resident: of them in memory at once.
      runs_per_batch: of those in lockstep.
      population: bytes of the resident runs' states and hyperparameters, all as large as the largest group's.
      data: bytes of `train` and of all of `evaluate`.
      program: bytes that the compiled epoch, or evaluation if that is more, needs beside population and data.
      steps: of single runs on the device, in all.
      flops_per_step: floating-point operations of a run's step, in matrix products and convolutions; with several
        groups the mean over the runs.
      checkpoint: bytes of the largest checkpoint, of all devices' runs: their states and curves.
    """

    device: Device
    devices: int
    compiled_for: str
    parameters: int
    runs: int
    resident: int
    runs_per_batch: int
    population: int
    data: int
    program: int
    steps: int
    flops_per_step: float
    checkpoint: int

    @property
    def memory(self) -> int:
        """Bytes of the device's memory, in all."""
        return self.population + self.data + self.program

    @property
    def fits(self) -> bool:
        """Whether the device has as much."""
        return self.memory <= self.device.memory

    @property
    def flops(self) -> float:
        """Floating-point operations of the device, in all."""
        return self.steps * self.flops_per_step

    def seconds(self, rate: float) -> float:
        """How long the device trains at a rate in FLOP/s, such as an earlier search had."""
        return self.flops / rate

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        kind = self.device.kind
        yield (
            f"{self.runs:,} runs on each of {self.devices:,} x {kind}: "
            f"{self.resident:,} in memory at once, {self.runs_per_batch:,} in lockstep"
        )
        yield (
            f"{size(self.memory)} of a device's {size(self.device.memory)}: the runs {size(self.population)}, "
            f"the data {size(self.data)}, the compiled program {size(self.program)}"
        )
        yield f"{self.parameters:,} parameters in a run; a checkpoint of {size(self.checkpoint)}"
        yield f"{self.flops:.2e} floating-point operations on a device"
        if self.compiled_for != kind:
            yield f"memory as compiled for {self.compiled_for}, which stands in for {kind}"
        if not self.fits:
            yield f"This does not fit into a device's {size(self.device.memory)}."


def plan(
    task: Task,
    space: Mapping[str, Any],
    *,
    train: Any,
    evaluate: Mapping[str, Any] | None = None,
    num_runs: int,
    epochs: int,
    batch_size: int,
    device: Device | str | None = None,
    devices: int | None = None,
    **options: Any,
) -> Plan:
    """Say what `fit` would take, called with the same arguments; nothing is trained.

    The programs are traced and compiled as `fit` compiles them, which takes seconds. Where the space has static
    choices, memory is that of the largest group's programs, beside runs that are all as large, and operations are those
    of all groups. With a sampler, the runs are taken as the space draws them.

        train = {"x": jax.ShapeDtypeStruct((60000, 784), "float32"), "y": jax.ShapeDtypeStruct((60000,), "int32")}
        print(population.plan(task, space, train=train, num_runs=1000, epochs=10, batch_size=100, device="h100"))

    Args:
      task, space, num_runs, epochs, batch_size: as for `fit`.
      train, evaluate: as for `fit`; `jax.ShapeDtypeStruct` in place of an array will do.
      device: the kind of device, or its name in `DEVICES`; by default this machine's. It need not be there: the
        compiler of a TPU is asked where libtpu is installed, for any other kind this machine's stands in.
      devices: how many of them; by default as many as JAX sees here, or 1 of another kind. Those beyond the number of
        runs are left out.
      options: further arguments of `fit`, all but `mesh`.

    Returns:
      A `Plan`; its memory is in bytes.

    Raises:
      RunTooLarge: if a device cannot hold a single run.
      MemoryTooSmall: for a policy whose runs do not fit side by side, unless `runs_in_memory` is given.
      ValueError, TypeError: as `fit`.
    """
    how = _execution(options)
    search = Search(
        task=task, space=Space(space), train=_arrays(train), evaluate={} if evaluate is None else _arrays(evaluate),
        num_runs=num_runs, epochs=epochs, batch_size=batch_size, **options,
    )  # fmt: skip
    if devices is None:
        devices = jax.device_count() if device is None else 1
    devices = min(checked_integer("devices", devices, 1), search.num_runs)
    device = _device(device)
    target = compiler_of(device)
    mesh = parallel.runs_mesh([target])
    groups = Groups(search, mesh)
    group = groups[groups.largest]
    if (state := num_bytes(group.shapes)) > device.memory:
        raise RunTooLarge(state, device.memory)

    splits = {name: _forms(split) for name, split in search.evaluate.items()}
    data = num_bytes((_forms(search.train), splits))
    on_cpu = device.kind == "cpu"
    side_by_side = how.runs_in_memory
    if side_by_side is None:
        # `fit` chooses it before anything is on the devices, and the runs in lockstep with all but `evaluate` there.
        side_by_side = groups.runs_in_memory(devices, None if on_cpu else device.memory)
        groups.check_together(side_by_side)
    runs = -(-search.num_runs // devices)
    resident = min(runs, -(-side_by_side // devices))
    own = min(resident, -(-groups.sizes[groups.largest] // devices))
    there = resident * state + num_bytes((_forms(search.train), group.batches))
    free = None if on_cpu else device.memory - there
    runs_per_batch = min(how.runs_per_batch or group.runs_per_batch(own, free, target), own)
    flops = sum(count * _flops_per_step(groups[name]) for name, count in groups.sizes.items()) / search.num_runs
    steps = sum(-(-step.runs // devices) for step in search.plan(side_by_side)) * search.steps_per_epoch
    learned = getattr(group.shapes.state, "params", group.shapes.state)
    kept = max(devices * resident, search.num_runs if search.keep == "all" else 0)
    curves = 4 * search.num_runs * search.epochs * len(groups.numbers)
    return Plan(
        device=device,
        devices=devices,
        compiled_for=target.device_kind,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(learned)),
        runs=runs,
        resident=resident,
        runs_per_batch=runs_per_batch,
        population=resident * state,
        data=data,
        program=_peak(group, splits, own, runs_per_batch) - own * state,
        steps=steps,
        flops_per_step=flops,
        checkpoint=kept * state + curves,
    )


def _execution(options: dict[str, Any]) -> Execution:
    """Those of `fit`'s further arguments that do not decide what comes out, taken from the others."""
    names = {field.name for field in dataclasses.fields(Execution)} - {"mesh"}
    others = {field.name for field in dataclasses.fields(Search)} - {"columns"}
    if strange := [name for name in options if name not in names | others]:
        raise TypeError(f"plan takes no {strange[0]!r}; beside device and devices it takes what fit does, but no mesh")
    return Execution(**{name: options.pop(name) for name in names & options.keys()})


def _device(device: Device | str | None) -> Device:
    if device is None:
        return this_device()
    if isinstance(device, str):
        if device not in DEVICES:
            raise ValueError(f"device is {device!r}; it must be one of {', '.join(DEVICES)}, or a Device")
        return DEVICES[device]
    check_is("device", device, Device, "a Device, or a name of one")
    return device


def _arrays(tree: Any) -> Any:
    """With arrays of zeros, which take no memory, for shapes and dtypes."""

    def array(leaf: Any) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)

    return jax.tree.map(array, tree)


def _forms(tree: Any) -> Any:
    """Shapes and dtypes of data, as they are on a device."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype)), tree)


def compiler_of(device: Device) -> jax.Device:
    """The device to compile for: one like it where there is a compiler for that, or this machine's."""
    if device.kind == "cpu":
        return jax.devices("cpu")[0]
    if device.topology is None or importlib.util.find_spec("libtpu") is None:
        return jax.devices()[0]
    # Nobody is to be asked which machine this is.
    os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_ACCELERATOR_TYPE="none", TPU_WORKER_HOSTNAMES="localhost")
    return topologies.get_topology_desc(topology_name=device.topology, platform="tpu").devices[0]


def _peak(group: Group, splits: Mapping[str, Any], runs: int, runs_per_batch: int) -> int:
    """Bytes of a device that has so many of the group's runs, while the most demanding of their programs runs.

    Args:
      splits: what they are evaluated on, in shapes and dtypes. It does not count.
    """

    def placed(tree: Any, spec: PartitionSpec, *leading: int) -> Any:
        place = NamedSharding(group.mesh, spec)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((*leading, *leaf.shape), leaf.dtype, sharding=place), tree
        )

    members, whole = placed(group.shapes, PartitionSpec(parallel.RUNS), runs), PartitionSpec()
    peak = _memory(group.programs.train.lower(members, placed(group.batches, whole), runs_per_batch))
    for split in splits.values():
        program = group.programs.evaluate.lower(members, placed(split, whole), runs_per_batch)
        peak = max(peak, _memory(program) - num_bytes(split))
    return peak


def _memory(program: jax.stages.Lowered) -> int:
    """Bytes of a device's memory while a program runs: its arguments, its results and what is between."""
    usage = program.compile().memory_analysis()
    assert usage is not None
    # Results that take the place of a donated argument count once.
    results = usage.output_size_in_bytes - usage.alias_size_in_bytes
    return usage.argument_size_in_bytes + results + usage.temp_size_in_bytes


def _flops_per_step(group: Group) -> int:
    run, key = group.shapes, jax.random.key(0)
    step = jax.make_jaxpr(group.task.step)(run.hp, run.state, group.batch, key).jaxpr
    return matmul_flops(dce_jaxpr(step, [True] * len(step.outvars))[0])


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
            if params.get("branches_platforms"):  # one is taken, and the last is what all other platforms compute
                inner = inner[-1:]
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


def size(count: int) -> str:
    """Bytes in words, such as "96.8 MiB"."""
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"

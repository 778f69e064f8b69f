"""What a search takes of a device, before anything is trained: memory and operations, from the compiled programs."""

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from highway_jax import parallel
from highway_jax.files import first_line
from highway_jax.population import compiled
from highway_jax.population.arguments import check_is, checked_integer
from highway_jax.population.devices import DEVICES, Device, compiler_of, slice_of, this_device
from highway_jax.population.execution import Execution
from highway_jax.population.groups import Groups
from highway_jax.population.memory import MemoryTooSmall, RunTooLarge, num_bytes
from highway_jax.population.programs import Group
from highway_jax.population.search import Search
from highway_jax.population.space import Space
from highway_jax.population.task import Task


class Collectives(NamedTuple):
    """How often a device takes part in each collective operation.

    Attributes:
      step: in a step of the runs in lockstep.
      epoch: in an epoch of all runs in memory, and the evaluation after it; steps included.
    """

    step: dict[str, int]
    epoch: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a search takes of each of its devices, the fullest one's share; printed, an account of it.

    Attributes:
      device: their kind.
      devices: how many share the runs.
      devices_to_a_batch: how many of them share each batch, and have the same runs.
      compiled_for: the kind of device whose compiler was asked.
      parameters: how many numbers a run learns (its state's `params`; of a state without, all), the largest group's.
      runs: trained on the device, one part after another.
      resident: of them in memory at once.
      runs_per_batch: of those in lockstep.
      population: bytes of the resident runs' states and hyperparameters, all as large as the largest group's.
      data: bytes of `train` and of all of `evaluate`.
      padding: bytes that the device's layout adds to both: a TPU's arrays consist of tiles.
      program: bytes that the compiled epoch, or evaluation if that is more, needs beside population and data.
      steps: of single runs on the device, in all.
      flops_per_step: floating-point operations of a run's step, in matrix products and convolutions; with several
        groups the mean over the runs.
      checkpoint: bytes of the largest checkpoint, of all devices' runs: their states and curves.
      collectives: what devices send each other; None unless the programs were compiled for all of them.
      compile_seconds: how long the epoch and the evaluation took to compile here.
    """

    device: Device
    devices: int
    devices_to_a_batch: int
    compiled_for: str
    parameters: int
    runs: int
    resident: int
    runs_per_batch: int
    population: int
    data: int
    padding: int
    program: int
    steps: int
    flops_per_step: float
    checkpoint: int
    collectives: Collectives | None
    compile_seconds: float = dataclasses.field(compare=False)

    @property
    def memory(self) -> int:
        """Bytes of the device's memory, in all."""
        return self.population + self.data + self.padding + self.program

    @property
    def fits(self) -> bool:
        """Whether the device has as much."""
        return self.memory <= self.device.memory

    @property
    def flops(self) -> float:
        """Floating-point operations of the device, in all."""
        return self.steps * self.flops_per_step / self.devices_to_a_batch

    def seconds(self, rate: float) -> float:
        """How long the device trains at a rate in FLOP/s, such as an earlier search had."""
        return self.flops / rate

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        kind = self.device.kind
        yield (
            f"{self.runs:,} runs on each of {self.devices:,} x {kind}"
            + f", {self.devices_to_a_batch} to a batch" * (self.devices_to_a_batch > 1)
            + f": {self.resident:,} in memory at once, {self.runs_per_batch:,} in lockstep"
        )
        padding = f"their padding to tiles {size(self.padding)}, " * (self.padding > 0)
        yield (
            f"{size(self.memory)} of a device's {size(self.device.memory)}: the runs {size(self.population)}, "
            f"the data {size(self.data)}, {padding}the compiled program {size(self.program)}"
        )
        yield f"{self.parameters:,} parameters in a run; a checkpoint of {size(self.checkpoint)}"
        yield f"{self.flops:.2e} floating-point operations on a device"
        if self.collectives is not None:
            step, epoch = map(in_words, self.collectives)
            yield f"a device sends {step} in a step, {epoch} in an epoch"
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
    topology: str | None = None,
    mesh: Mesh | tuple[int, int] | None = None,
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
      topology: in place of both, a TPU slice, such as "v5e:16x16". The programs are compiled for its devices together,
        by libtpu, which has to be installed; no TPU is needed.
      mesh: (runs, data), or a mesh of that shape: how many devices of the slice, or of this machine, share the runs,
        and each batch; by default as `fit` chooses. With it, too, the programs are compiled for all of them together.
      options: further arguments of `fit`.

    Returns:
      A `Plan`; its memory is in bytes.

    Raises:
      RunTooLarge: if a device cannot hold a single run.
      MemoryTooSmall: for a policy whose runs do not fit side by side, unless `runs_in_memory` is given; or where the
        device's compiler finds no room for the programs.
      ValueError, TypeError: as `fit`.
    """
    how = _execution(options)
    search = Search(
        task=task, space=Space(space), train=_arrays(train), evaluate={} if evaluate is None else _arrays(evaluate),
        num_runs=num_runs, epochs=epochs, batch_size=batch_size, **options,
    )  # fmt: skip
    where = _place(search, device, devices, topology, mesh)
    device, shards, target = where.device, where.shards, where.mesh.devices.flat[0]
    groups = Groups(search, where.mesh)
    group = groups[groups.largest]
    if (state := num_bytes(group.shapes)) > device.memory:
        raise RunTooLarge(state, device.memory)

    on_cpu = device.kind == "cpu"
    side_by_side = how.runs_in_memory
    if side_by_side is None:
        # `fit` chooses it before anything is on the devices, and the runs in lockstep with all but `evaluate` there.
        side_by_side = groups.runs_in_memory(shards, None if on_cpu else device.memory)
        groups.check_together(side_by_side)
    runs = -(-search.num_runs // shards)
    resident = min(runs, -(-side_by_side // shards))
    own = min(resident, -(-groups.sizes[groups.largest] // shards))
    splits = {name: _forms(split) for name, split in search.evaluate.items()}
    members, train, evaluate = _members(group, resident), _whole(group, _forms(search.train)), _whole(group, splits)
    population = compiled.laid_out(members)
    free = None if on_cpu else device.memory - population - compiled.laid_out((train, _batches(group)))
    # Of a single run the compiler need not be asked, which takes as long as the epoch itself.
    wanted = 1 if own == 1 else how.runs_per_batch or group.runs_per_batch(own, free, target)
    runs_per_batch = min(wanted, own)
    programs = _compiled(group, splits, own, runs_per_batch)
    data = num_bytes((train, evaluate))
    flops = sum(count * _flops_per_step(groups[name]) for name, count in groups.sizes.items()) / search.num_runs
    steps = sum(-(-step.runs // shards) for step in search.plan(side_by_side)) * search.steps_per_epoch
    learned = getattr(group.shapes.state, "params", group.shapes.state)
    kept = max(shards * resident, search.num_runs if search.keep == "all" else 0)
    curves = 4 * search.num_runs * search.epochs * len(groups.numbers)
    return Plan(
        device=device,
        devices=where.devices,
        devices_to_a_batch=where.mesh.shape[parallel.DATA],
        compiled_for=target.device_kind,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(learned)),
        runs=runs,
        resident=resident,
        runs_per_batch=runs_per_batch,
        population=resident * state,
        data=data,
        padding=population + compiled.laid_out((train, evaluate)) - resident * state - data,
        program=programs.memory,
        steps=steps,
        flops_per_step=flops,
        checkpoint=kept * state + curves,
        collectives=programs.collectives if where.mesh.shape[parallel.RUNS] == shards else None,
        compile_seconds=programs.seconds,
    )


def _execution(options: dict[str, Any]) -> Execution:
    """Those of `fit`'s further arguments that do not decide what comes out, taken from the others."""
    names = {field.name for field in dataclasses.fields(Execution)}
    others = {field.name for field in dataclasses.fields(Search)} - {"columns"}
    if strange := [name for name in options if name not in names | others]:
        raise TypeError(f"plan takes no {strange[0]!r}; beside device, devices and topology it takes what fit does")
    return Execution(**{name: options.pop(name) for name in names & options.keys()})


class _Place(NamedTuple):
    """Where a search is planned to be.

    Attributes:
      device: the kind of device.
      devices: how many.
      shards: into how many parts they divide the runs.
      mesh: what is compiled for: all of them, or one that stands for each.
    """

    device: Device
    devices: int
    shards: int
    mesh: Mesh


def _place(search: Search, device: Any, devices: int | None, topology: str | None, shape: Any) -> _Place:
    if topology is None and shape is None:
        if devices is None:
            devices = jax.device_count() if device is None else 1
        devices = min(checked_integer("devices", devices, 1), search.num_runs)
        device = _device(device)
        return _Place(device, devices, devices, parallel.runs_mesh([compiler_of(device)]))
    if device is not None or devices is not None:
        raise ValueError("device and devices must be None where topology or mesh says both")
    device, there = (this_device(), jax.devices()) if topology is None else slice_of(topology)
    if isinstance(shape, Mesh):
        shape = shape.shape[parallel.RUNS], shape.shape[parallel.DATA]
    if shape is None:
        mesh = parallel.choose_mesh(search.num_runs, search.batch_size, there)
    else:
        mesh = parallel.mesh_of(shape, there)
        if search.batch_size % mesh.shape[parallel.DATA]:
            raise ValueError(f"mesh is {shape}; {shape[1]} devices cannot share batches of {search.batch_size} evenly")
    return _Place(device, mesh.size, mesh.shape[parallel.RUNS], mesh)


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


class _Programs(NamedTuple):
    """What the compiled epoch and evaluations of a group take and do.

    Attributes:
      memory: bytes of the most demanding one on a device, beside the runs and what they are evaluated on.
      collectives: what is sent in an epoch and its evaluation.
      seconds: that they took to compile.
    """

    memory: int
    collectives: Collectives
    seconds: float


def _compiled(group: Group, splits: Mapping[str, Any], runs: int, runs_per_batch: int) -> _Programs:
    """Compile them, as `fit` does, for so many runs on a device.

    Args:
      splits: what they are evaluated on, in shapes and dtypes.
    """
    started, steps = time.monotonic(), group.search.steps_per_epoch
    members, shards = _members(group, runs), group.mesh.shape[parallel.RUNS]
    rows = jax.ShapeDtypeStruct((runs * shards,), bool, sharding=parallel.over_runs(group.mesh))
    lowered = [(group.programs.train.lower(members, _batches(group), runs_per_batch, rows), None)]
    for split in splits.values():
        placed = _whole(group, split)
        lowered.append((group.programs.evaluate.lower(members, placed, runs_per_batch, rows), placed))
    try:
        programs = [program.compile() for program, _ in lowered]
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryTooSmall(
            f"runs_per_batch is {runs_per_batch}; with {runs} run{'s' * (runs > 1)} in a device's memory its compiler "
            f"finds no room for so many in lockstep: {first_line(error)}"
        ) from error
    seconds = time.monotonic() - started
    beside = compiled.laid_out(members)
    peak = max(
        compiled.memory(program) - beside - (0 if split is None else compiled.laid_out(split))
        for program, (_, split) in zip(programs, lowered, strict=True)
    )
    step: Counter[str] = Counter()
    epoch: Counter[str] = Counter()
    for number, program in enumerate(programs):
        for kind, loops in compiled.collectives(program.as_text()):
            # Runs in lockstep follow one another as long as there are any: the one loop whose length is data.
            batches, inner = (-(-runs // runs_per_batch), loops[1:]) if loops[:1] == (None,) else (1, loops)
            times = math.prod(trips or 1 for trips in inner)
            epoch[kind] += batches * times
            if number == 0 and (inner[:1] == (steps,) or steps == 1):  # a loop that runs once is none
                step[kind] += times // steps
    return _Programs(peak, Collectives(dict(step), dict(epoch)), seconds)


def _members(group: Group, runs: int) -> Any:
    """A population with so many of a group's runs on a device, in shapes, dtypes and places."""
    return _placed(group, group.shapes, PartitionSpec(parallel.RUNS), runs * group.mesh.shape[parallel.RUNS])


def _batches(group: Group) -> Any:
    """An epoch's batches, likewise."""
    return _placed(group, group.batches, PartitionSpec(None, parallel.DATA))


def _whole(group: Group, tree: Any) -> Any:
    """What every device has, likewise."""
    return _placed(group, tree, PartitionSpec())


def _placed(group: Group, tree: Any, spec: PartitionSpec, *leading: int) -> Any:
    place = NamedSharding(group.mesh, spec)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*leading, *leaf.shape), leaf.dtype, sharding=place), tree)


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


def in_words(counts: Mapping[str, int]) -> str:
    """Such as "600 all-reduce", or "nothing"."""
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.items()) or "nothing"

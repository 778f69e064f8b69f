"""The memory and the operations that a search needs, read from its compiled programs before anything is trained."""

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
      step: the number by kind of operation, in one step of the runs in lockstep.
      epoch: the number by kind of operation, in an epoch of all runs in memory and the evaluation after it, including
        all steps.
    """

    step: dict[str, int]
    epoch: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a search needs of each of its devices. Printing it gives a summary.

    If devices have unequal shares of the runs, the numbers are those of a device with the largest share.

    Attributes:
      device: the kind of the devices.
      devices: the number of devices.
      devices_to_a_batch: the number of devices that share each batch and hold the same runs.
      compiled_for: the kind of device whose compiler was asked.
      parameters: the number of parameters of a run: the size of its state's `params`, or of the whole state if it has
        no `params`. With several groups, that of the largest one.
      runs: the number of runs that the device trains in all.
      resident: the number of these that are in memory together.
      runs_per_batch: the number of these that are trained in lockstep.
      population: bytes of the states and hyperparameters of the resident runs, if all are as large as those of the
        largest group.
      data: bytes of `train` and of all of `evaluate`.
      padding: bytes that the device's layout adds to population and data, such as the tiles of a TPU.
      program: bytes that the compiled epoch needs in addition, or the evaluation if it needs more.
      steps: the number of steps of single runs on the device.
      flops_per_step: floating-point operations in the matrix products and convolutions of one step of a run, averaged
        over all runs.
      checkpoint: bytes of the largest checkpoint, which holds the states of the runs of all devices, and the curves.
      collectives: the collective operations between devices; None unless the programs were compiled for all devices.
      compile_seconds: the time that it took to compile the epoch and the evaluation on this machine.
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
        """Bytes of device memory that the search needs in total."""
        return self.population + self.data + self.padding + self.program

    @property
    def fits(self) -> bool:
        """Whether the device has that much memory."""
        return self.memory <= self.device.memory

    @property
    def flops(self) -> float:
        """Floating-point operations of one device over the whole search."""
        return self.steps * self.flops_per_step / self.devices_to_a_batch

    def seconds(self, rate: float) -> float:
        """The training time in seconds.

        Args:
          rate: the speed of the device in FLOP/s, for example as measured in an earlier search.
        """
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
    """Predict the memory and the operations of `fit` with the same arguments. Nothing is trained.

    The programs are traced and compiled as in `fit`, which takes seconds. If the space has static choices, the memory
    is that of the largest group, as if all runs were of that group; the operations are those of all groups. With a
    sampler, the runs are taken as the space draws them.

    Args:
      task: as for `fit`.
      space: as for `fit`.
      train: as for `fit`; arrays may be replaced by `jax.ShapeDtypeStruct`.
      evaluate: as for `fit`; arrays may be replaced by `jax.ShapeDtypeStruct`.
      num_runs: as for `fit`.
      epochs: as for `fit`.
      batch_size: as for `fit`.
      device: the kind of device, or its name in `DEVICES`; by default that of this machine. It need not be attached: a
        TPU's compiler is used if libtpu is installed, otherwise this machine's compiler stands in.
      devices: the number of devices. By default, all devices that JAX has on this machine, or 1 if `device` is given.
        Devices beyond the number of runs are left out.
      topology: a TPU slice such as "v5e:16x16", instead of `device` and `devices`. libtpu compiles the programs for all
        devices of the slice together. It must be installed, but no TPU is needed.
      mesh: `(runs, data)` or a mesh of that shape: how many devices of the slice or of this machine divide the runs,
        and how many share each batch. By default, as `fit` chooses. With a mesh, too, the programs are compiled for all
        devices together.
      **options: further arguments of `fit`.

    Returns:
      A `Plan`.

    Raises:
      RunTooLarge: if a device cannot hold a single run.
      MemoryTooSmall: if memory does not hold all runs that a policy compares and `runs_in_memory` is not given, or if
        the device's compiler finds no room for the programs.
      ValueError: as `fit`, and for a device, slice or mesh that does not exist.
      TypeError: as `fit`.

    Example:
      A search on an H100, planned on another machine:

      ```python
      train = {"x": jax.ShapeDtypeStruct((60000, 784), "float32"), "y": jax.ShapeDtypeStruct((60000,), "int32")}
      print(population.plan(task, space, train=train, num_runs=1000, epochs=10, batch_size=100, device="h100"))
      ```
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
        # `fit` chooses this before anything is on the devices, and `runs_per_batch` once all but `evaluate` is.
        side_by_side = groups.runs_in_memory(shards, None if on_cpu else device.memory)
        groups.check_together(side_by_side)
    runs = -(-search.num_runs // shards)
    resident = min(runs, -(-side_by_side // shards))
    own = min(resident, -(-groups.sizes[groups.largest] // shards))
    splits = {name: _forms(split) for name, split in search.evaluate.items()}
    members, train, evaluate = _members(group, resident), _whole(group, _forms(search.train)), _whole(group, splits)
    population = compiled.laid_out(members)
    free = None if on_cpu else device.memory - population - compiled.laid_out((train, _batches(group)))
    # A single run needs no compilation to choose from, which would take as long as that of the epoch.
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
    """Remove from `options` the arguments of `fit` that do not change its result, and return them checked."""
    names = {field.name for field in dataclasses.fields(Execution)}
    others = {field.name for field in dataclasses.fields(Search)} - {"columns"}
    if strange := [name for name in options if name not in names | others]:
        raise TypeError(f"plan takes no {strange[0]!r}; besides device, devices and topology, it takes what fit takes")
    return Execution(**{name: options.pop(name) for name in names & options.keys()})


class _Place(NamedTuple):
    """The devices of a planned search.

    Attributes:
      device: the kind of device.
      devices: the number of devices.
      shards: the number of parts into which they divide the runs.
      mesh: the devices to compile for: all of them, or one that stands for each.
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
    """Replace each `jax.ShapeDtypeStruct` by an array of zeros that takes no memory."""

    def array(leaf: Any) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)

    return jax.tree.map(array, tree)


def _forms(tree: Any) -> Any:
    """The shapes of data, and the dtypes that it has on a device."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype)), tree)


class _Programs(NamedTuple):
    """Facts about the compiled epoch and evaluations of a group.

    Attributes:
      memory: bytes that the most demanding program needs on a device, without the runs and the evaluated split.
      collectives: the collective operations in a step and in an epoch with its evaluation.
      seconds: the time that they took to compile.
    """

    memory: int
    collectives: Collectives
    seconds: float


def _compiled(group: Group, splits: Mapping[str, Any], runs: int, runs_per_batch: int) -> _Programs:
    """Compile the programs of a group as `fit` does.

    Args:
      group: the group.
      splits: shapes and dtypes of the data for evaluation, by name.
      runs: the number of runs on each device.
      runs_per_batch: the number of these in lockstep.
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
            f"finds no room for that many in lockstep: {first_line(error)}"
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
            # The loop over batches of runs is the only one whose length is data, since padding rows are skipped.
            batches, inner = (-(-runs // runs_per_batch), loops[1:]) if loops[:1] == (None,) else (1, loops)
            times = math.prod(trips or 1 for trips in inner)
            epoch[kind] += batches * times
            if number == 0 and (inner[:1] == (steps,) or steps == 1):  # XLA removes a loop that runs once
                step[kind] += times // steps
    return _Programs(peak, Collectives(dict(step), dict(epoch)), seconds)


def _members(group: Group, runs: int) -> Any:
    """Shapes, dtypes and shardings of a population with this number of a group's runs on each device."""
    return _placed(group, group.shapes, PartitionSpec(parallel.RUNS), runs * group.mesh.shape[parallel.RUNS])


def _batches(group: Group) -> Any:
    """Shapes, dtypes and shardings of an epoch's batches."""
    return _placed(group, group.batches, PartitionSpec(None, parallel.DATA))


def _whole(group: Group, tree: Any) -> Any:
    """Shapes, dtypes and shardings of a tree that every device has a copy of."""
    return _placed(group, tree, PartitionSpec())


def _placed(group: Group, tree: Any, spec: PartitionSpec, *leading: int) -> Any:
    place = NamedSharding(group.mesh, spec)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*leading, *leaf.shape), leaf.dtype, sharding=place), tree)


def _flops_per_step(group: Group) -> int:
    run, key = group.shapes, jax.random.key(0)
    step = jax.make_jaxpr(group.task.step)(run.hp, run.state, group.batch, key).jaxpr
    return matmul_flops(dce_jaxpr(step, [True] * len(step.outvars))[0])


def matmul_flops(jaxpr: Any) -> int:
    """Count the floating-point operations of a program's matrix products and convolutions.

    The body of a scan counts once per iteration, whereas XLA's `cost_analysis` counts it once. Operations on the zeros
    that pad a convolution are counted; elementwise operations are not.
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
            if params.get("branches_platforms"):  # only one branch runs; the last is the default
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
    """Format a number of bytes, such as "96.8 MiB"."""
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def in_words(counts: Mapping[str, int]) -> str:
    """Format the number of collective operations, such as "600 all-reduce", or "nothing"."""
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.items()) or "nothing"

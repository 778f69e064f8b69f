"""Where runs live: devices and processes, and how a function of one run is mapped over them."""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

RUNS, DATA = "runs", "data"


class ProcessLost(Exception):
    """Another process of several has ended, or cannot be reached."""

    def __init__(self) -> None:
        super().__init__("another process has ended or cannot be reached")


class Elsewhere(Exception):
    """The first process of several has met an error, and says so itself."""


def blames_another(error: Exception) -> bool:
    """Whether an error comes from how processes reach each other: it has the type of the code that it has stopped."""
    names = "Gloo", "NCCL", "CoordinationService"
    return jax.process_count() > 1 and any(name in str(error) for name in names)


def split_cpu(devices: int | None = None) -> None:
    """Make JAX see the CPU as several devices, one per core by default.

    XLA parallelizes the small products of thin networks badly by itself; runs split over such devices
    keep every core busy. Call it before JAX is first used; without effect on accelerators.

    Raises:
      RuntimeError: if JAX has been used already, with another number of devices.
    """
    try:
        jax.config.update("jax_num_cpu_devices", devices or cpu_cores())
    except RuntimeError as error:
        raise RuntimeError(
            "split_cpu is called after JAX was first used, such as by jax.devices() or an array; call it before, right "
            "after the imports (in a notebook, after a restart of the kernel)"
        ) from error


def cpu_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def runs_mesh(devices: Sequence[jax.Device] | None = None, data: int = 1) -> Mesh:
    """A mesh with the axes `runs` and `data`: runs are split over the first, batches over the second.

    Args:
      devices: those of all processes by default.
      data: how many of them share every batch; it must divide their number.
    """
    return Mesh(np.asarray(jax.devices() if devices is None else devices).reshape(-1, data), (RUNS, DATA))


def choose_mesh(num_runs: int, batch_size: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh for a population: runs over all devices or, where there are more devices than runs, batches too.

    Not on CPUs, whose cores share one run's work as well without it. Devices for which there are no runs are left
    out, unless there are several processes: each must take part.

    Args:
      num_runs, batch_size: of the search.
      devices: those of all processes by default.
    """
    devices = jax.devices() if devices is None else devices
    data = 1 if devices[0].platform == "cpu" else devices_to_a_batch(num_runs, batch_size, len(devices))
    return runs_mesh(devices if _of_several(devices) else devices[: num_runs * data], data)


def mesh_of(shape: tuple[int, int], devices: Sequence[jax.Device]) -> Mesh:
    """A mesh of this shape, (runs, data), of the first of these devices.

    Raises:
      ValueError: if there are not so many, or more, where they are of several processes.
    """
    sizes = isinstance(shape, tuple | list) and len(shape) == 2 and all(isinstance(size, int) for size in shape)
    if not sizes or min(shape) < 1:
        raise ValueError(f"mesh is {shape!r}; it must be (runs, data), how many devices share the runs, and each batch")
    size, several = shape[0] * shape[1], _of_several(devices)
    if size > len(devices) or (several and size < len(devices)):
        there = f"{len(devices):,} device{'s' * (len(devices) > 1)}"
        raise ValueError(f"mesh is {shape}; it must take {'all' if several else 'at most'} {there}")
    return runs_mesh(devices[:size], shape[1])


def _of_several(devices: Sequence[jax.Device]) -> bool:
    """Whether devices are of several processes."""
    return len({device.process_index for device in devices}) > 1


def devices_to_a_batch(num_runs: int, batch_size: int, devices: int) -> int:
    """How many devices should share a batch: the most that divide it and them all and leave one for every run."""
    sizes = range(1, max(1, devices // num_runs) + 1)
    return max(size for size in sizes if devices % size == batch_size % size == 0)


def split_runs(mesh: Mesh, population: Any) -> Any:
    """Put a population of host arrays on the mesh, its leading axis split over `runs`."""
    return _put(population, over_runs(mesh))


def over_runs(mesh: Mesh) -> NamedSharding:
    """How a population's arrays lie on the mesh: their leading axis split over `runs`."""
    return NamedSharding(mesh, PartitionSpec(RUNS))


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Put host arrays, the same ones in every process, whole on every device of the mesh."""
    return _put(tree, NamedSharding(mesh, PartitionSpec()))


def _put(tree: Any, sharding: NamedSharding) -> Any:
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    # `device_put` would send every process's copy to all others, to compare them.
    return jax.tree.map(
        lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, np.asarray(leaf).__getitem__), tree
    )


def split_batches(mesh: Mesh, batches: Any) -> Any:
    """Inside `jax.jit`: split arrays of shape (steps, batch, ...) over `data`."""
    return lax.with_sharding_constraint(batches, NamedSharding(mesh, PartitionSpec(None, DATA)))


def padded(num_runs: int, mesh: Mesh) -> int:
    """The smallest number of runs, at least `num_runs`, that the mesh's `runs` axis can share evenly."""
    return -(-num_runs // mesh.shape[RUNS]) * mesh.shape[RUNS]


def gather(tree: Any) -> Any:
    """Arrays that live on any devices of any processes, as host arrays in every process.

    All processes must call it.

    Raises:
      ProcessLost: if one of them has ended.
    """
    if jax.process_count() == 1:
        return jax.device_get(tree)
    jax.block_until_ready(tree)  # what has failed here is not the others' fault
    with _others():
        return multihost_utils.process_allgather(tree, tiled=True)


def agree(*values: int) -> np.ndarray:
    """Tell every process what each one says: (processes, values) int32. It waits for all of them.

    Raises:
      ProcessLost: if one of them has ended.
    """
    with _others():
        return multihost_utils.process_allgather(np.array(values, np.int32))


def at_first(function: Callable[[], int | None]) -> int:
    """Call a function in the first process; what it returns there, in all of them, 0 for None.

    Raises:
      Elsewhere: in the others, when it raised an error in the first.
    """
    value, failure = 0, None
    if jax.process_index() == 0:
        try:
            value = function() or 0
        except Exception as error:
            failure = error
    failed, value = agree(failure is not None, value)[0].tolist()
    if failure:
        raise failure
    if failed:
        raise Elsewhere
    return value


@contextlib.contextmanager
def _others() -> Iterator[None]:
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # each transport has its own
        raise ProcessLost from error


def free_memory(mesh: Mesh) -> int | None:
    """Bytes still free on a device of this process, or None where the device does not say (a CPU)."""
    stats = mesh.local_devices[0].memory_stats() or {}
    return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None


def host_memory() -> int:
    """Bytes of this machine's memory, or of the part that its container may use; without end where nothing says."""
    memory = sys.maxsize
    with contextlib.suppress(AttributeError, ValueError):  # not every system says
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # other systems have no such file, or no limit in it
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return memory


def spread(num_runs: int, rows: int, mesh: Mesh) -> np.ndarray:
    """Which rows of a population its runs have: the first ones of every device, whose shares differ by one at most."""
    devices = np.arange(rows).reshape(mesh.shape[RUNS], -1)
    shares = np.array_split(np.arange(num_runs), len(devices))
    return np.concatenate([own[: len(share)] for own, share in zip(devices, shares, strict=True)])


def map_runs(function: Callable[..., Any], mesh: Mesh, runs_per_batch: int) -> Callable[..., Any]:
    """Map a function of one run over a population that is split over the mesh.

    Args:
      function: `function(run, *shared)`, pure.
      mesh: from `runs_mesh`.
      runs_per_batch: how many runs a device takes through the function in lockstep, at most all it has;
        the batches follow one another.

    Returns:
      `mapped(population, *shared, used=None)`: every leaf of the population and of the result has a leading axis of
      rows, divisible by the mesh's `runs`. `used`, (rows,) bool, says which of them are runs, as `spread` has it; by
      default all. Other rows cost little, and their results mean nothing. Along the rows devices do not communicate;
      along `data` the compiler makes them, where shared arrays are split over it.
    """
    return _mapped(function, mesh, runs_per_batch, updates=False)


def update_runs(function: Callable[..., Any], mesh: Mesh, runs_per_batch: int) -> Callable[..., Any]:
    """Map a function that changes a run over a population, in the population's own memory if it is donated.

    Args:
      function: `function(run, *shared) -> (run, result)`, pure; the run keeps its shapes and dtypes.
      mesh, runs_per_batch: as for `map_runs`.

    Returns:
      `updated(population, *shared, used=None) -> (population, results)`, otherwise as `map_runs` has it.
    """
    return _mapped(function, mesh, runs_per_batch, updates=True)


def _mapped(function: Callable[..., Any], mesh: Mesh, runs_per_batch: int, updates: bool) -> Callable[..., Any]:
    def on_device(population, used, *shared):
        @functools.partial(jax.jit, inline=True)  # traced once
        def one(run):
            found = function(run, *shared)
            return found if updates else ((), found)

        if 1 < len(used) <= runs_per_batch:
            found = jax.vmap(one)(population)
        else:
            found = _in_batches(one, population, used, min(runs_per_batch, len(used)), updates)
        return found if updates else found[1]

    on_devices = _on_each_device(on_device, mesh)

    def mapped(population, *shared, used=None):
        rows = len(jax.tree.leaves(population)[0])
        return on_devices(population, jnp.ones(rows, bool) if used is None else used, *shared)

    return mapped


def _in_batches(one: Callable[[Any], Any], population: Any, used: Any, size: int, updates: bool) -> Any:
    """Take the used rows of a population, which are the first ones, through a function, `size` at a time.

    How many batches there are is data, so that runs may stop without another compilation.
    """
    rows = len(used)

    def some(tree, start):
        return jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, start, size), tree)

    def batch(number, state):
        first = number * size
        start = jnp.minimum(first, rows - size)  # the last batch may begin with runs of the one before
        before = some(state, start)
        runs = before[0] if updates else some(population, start)
        if size == 1:  # cheaper without a batch axis
            after = jax.tree.map(lambda leaf: leaf[None], one(jax.tree.map(lambda leaf: leaf[0], runs)))
        else:
            due = start + jnp.arange(size, dtype=jnp.int32) >= first
            chosen = functools.partial(jax.vmap(jnp.where), due)
            after = jax.tree.map(chosen, jax.vmap(one)(runs), before)
        put = functools.partial(lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
        return jax.tree.map(put, state, after)

    result = jax.eval_shape(one, jax.tree.map(lambda leaf: leaf[0], population))[1]
    results = jax.tree.map(lambda leaf: jnp.zeros((rows, *leaf.shape), leaf.dtype), result)
    batches = -(-used.sum(dtype=jnp.int32) // size)
    return lax.fori_loop(0, batches, batch, (population if updates else (), results))


def _on_each_device(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """A function of a device's part of a population, and of what all share, on every device."""

    def everywhere(population, used, *shared):
        runs, whole = PartitionSpec(RUNS), PartitionSpec()
        specs = (runs, runs, *(whole for _ in shared))
        # The program is divided by hand over `runs` alone. What a step's mean over the batch, or its random bits, ask
        # of devices that share a batch is the compiler's business; where none do, `data` is by hand too, since only
        # then JAX takes callbacks such as `jax.debug.print`. Without collectives of ours there is nothing for the
        # replication check to check.
        by_hand = {RUNS} if mesh.shape[DATA] > 1 else {RUNS, DATA}
        results = jax.shard_map(
            function, mesh=mesh, in_specs=specs, out_specs=runs, axis_names=by_hand, check_vma=False
        )(population, used, *shared)
        return lax.with_sharding_constraint(results, NamedSharding(mesh, runs))

    return everywhere

"""Devices and processes, and how a function of one run is mapped over them."""

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
    """Another process of a multi-process search has ended or cannot be reached."""

    def __init__(self) -> None:
        super().__init__("another process has ended or cannot be reached")


class Elsewhere(Exception):
    """The first process has raised an error, which it reports itself."""


def blames_another(error: Exception) -> bool:
    """Whether an error comes from the communication between processes, whose errors have many types."""
    names = "Gloo", "NCCL", "CoordinationService"
    return jax.process_count() > 1 and any(name in str(error) for name in names)


def split_cpu(devices: int | None = None) -> None:
    """Split the CPU into several JAX devices, by default one per core.

    XLA alone parallelizes the small products of thin networks poorly. With runs divided over several devices, every
    core is busy. Call this function before JAX is first used. It has no effect on accelerators.

    Args:
      devices: the number of devices.

    Raises:
      RuntimeError: if JAX has already been used with another number of devices.

    Example:
      ```python
      from highway_jax import parallel, population

      parallel.split_cpu()
      result = population.fit(...)
      ```
    """
    try:
        jax.config.update("jax_num_cpu_devices", devices or cpu_cores())
    except RuntimeError as error:
        raise RuntimeError(
            "split_cpu was called after JAX was first used, such as by jax.devices() or an array; call it earlier, "
            "right after the imports (in a notebook, after a restart of the kernel)"
        ) from error


def cpu_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def runs_mesh(devices: Sequence[jax.Device] | None = None, data: int = 1) -> Mesh:
    """Return a mesh with the axes `runs`, over which runs are divided, and `data`, over which batches are divided.

    Args:
      devices: the devices, by default those of all processes.
      data: the number of devices that share each batch; it must divide the number of devices.
    """
    return Mesh(np.asarray(jax.devices() if devices is None else devices).reshape(-1, data), (RUNS, DATA))


def choose_mesh(num_runs: int, batch_size: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Choose the mesh for a population.

    Runs are divided over all devices. If there are more devices than runs, batches are divided too, except on CPUs,
    whose cores share the work of one run just as well without it. Devices without runs are left out, unless there are
    several processes, since each process must take part.

    Args:
      num_runs: the number of runs of the search.
      batch_size: the batch size of the search.
      devices: the devices, by default those of all processes.
    """
    devices = jax.devices() if devices is None else devices
    data = 1 if devices[0].platform == "cpu" else devices_to_a_batch(num_runs, batch_size, len(devices))
    return runs_mesh(devices if _of_several(devices) else devices[: num_runs * data], data)


def mesh_of(shape: tuple[int, int], devices: Sequence[jax.Device]) -> Mesh:
    """Return a mesh of a shape (runs, data) with the first of the devices.

    Raises:
      ValueError: if there are too few devices, or if devices of several processes would be left out.
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
    """Whether devices belong to several processes."""
    return len({device.process_index for device in devices}) > 1


def devices_to_a_batch(num_runs: int, batch_size: int, devices: int) -> int:
    """The largest number of devices per batch that divides devices and batch size and leaves a device for each run."""
    sizes = range(1, max(1, devices // num_runs) + 1)
    return max(size for size in sizes if devices % size == batch_size % size == 0)


def split_runs(mesh: Mesh, population: Any) -> Any:
    """Put a population of host arrays on the mesh, with its leading axis divided over `runs`."""
    return _put(population, over_runs(mesh))


def over_runs(mesh: Mesh) -> NamedSharding:
    """The sharding of a population's arrays, with their leading axis divided over `runs`."""
    return NamedSharding(mesh, PartitionSpec(RUNS))


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Put a copy of host arrays, which must be equal in all processes, on every device of the mesh."""
    return _put(tree, NamedSharding(mesh, PartitionSpec()))


def _put(tree: Any, sharding: NamedSharding) -> Any:
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    # `device_put` would send the copies of all processes around to compare them.
    return jax.tree.map(
        lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, np.asarray(leaf).__getitem__), tree
    )


def split_batches(mesh: Mesh, batches: Any) -> Any:
    """Divide arrays of shape (steps, batch, ...) over `data`, inside `jax.jit`."""
    return lax.with_sharding_constraint(batches, NamedSharding(mesh, PartitionSpec(None, DATA)))


def padded(num_runs: int, mesh: Mesh) -> int:
    """Round a number of runs up to a multiple of the size of the mesh's `runs` axis."""
    return -(-num_runs // mesh.shape[RUNS]) * mesh.shape[RUNS]


def gather(tree: Any) -> Any:
    """Copy arrays on any devices of any processes to host arrays in every process.

    All processes must call it.

    Args:
      tree: a tree of arrays.

    Returns:
      The tree with NumPy arrays.

    Raises:
      ProcessLost: if another process has ended.
    """
    if jax.process_count() == 1:
        return jax.device_get(tree)
    jax.block_until_ready(tree)  # an error of this process must not be blamed on others
    with _others():
        return multihost_utils.process_allgather(tree, tiled=True)


def agree(*values: int) -> np.ndarray:
    """Exchange integers between all processes, which must all call it.

    Args:
      *values: the values of this process.

    Returns:
      The values of all processes, (processes, values) int32.

    Raises:
      ProcessLost: if another process has ended.
    """
    with _others():
        return multihost_utils.process_allgather(np.array(values, np.int32))


def at_first(function: Callable[[], int | None]) -> int:
    """Call a function in the first process only. All processes must call `at_first`.

    Args:
      function: the function; errors that it raises are raised in the first process.

    Returns:
      Its result in all processes, with 0 for None.

    Raises:
      Elsewhere: in the other processes, if the function raises an error.
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
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # transports raise different types
        raise ProcessLost from error


def free_memory(mesh: Mesh) -> int | None:
    """The free bytes of a device of this process, or None if the device does not say, such as a CPU."""
    stats = mesh.local_devices[0].memory_stats() or {}
    return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None


def host_memory() -> int:
    """The bytes of memory of this machine or container; `sys.maxsize` if unknown."""
    memory = sys.maxsize
    with contextlib.suppress(AttributeError, ValueError):  # not every system says
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # the file may be missing, or have no limit
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return memory


def spread(num_runs: int, rows: int, mesh: Mesh) -> np.ndarray:
    """The rows of a population for its runs: the first rows of each device, whose shares differ by one at most.

    Args:
      num_runs: the number of runs.
      rows: the number of rows.
      mesh: the devices.

    Returns:
      The indices of the rows, (num_runs,).
    """
    devices = np.arange(rows).reshape(mesh.shape[RUNS], -1)
    shares = np.array_split(np.arange(num_runs), len(devices))
    return np.concatenate([own[: len(share)] for own, share in zip(devices, shares, strict=True)])


def map_runs(function: Callable[..., Any], mesh: Mesh, runs_per_batch: int) -> Callable[..., Any]:
    """Map a function of one run over a population that is divided over the mesh.

    Every leaf of the population and of the result has a leading axis of rows, whose length must be divisible by the
    mesh's `runs`. `used`, (rows,) bool, marks the rows that hold runs, which must be those from `spread`; by default
    all. Other rows cost little, unless they share a batch of lockstep
    with used ones, and their results are meaningless. Devices do not communicate along `runs`. Along
    `data`, the compiler inserts communication if shared arrays are divided over it.

    Args:
      function: `function(run, *shared)`, a pure function.
      mesh: the devices, from `runs_mesh`.
      runs_per_batch: the number of runs that a device computes in lockstep, at most all that it has. Batches of runs
        follow one another.

    Returns:
      `mapped(population, *shared, used=None)`, which returns the results of all rows.
    """
    return _mapped(function, mesh, runs_per_batch, updates=False)


def update_runs(function: Callable[..., Any], mesh: Mesh, runs_per_batch: int) -> Callable[..., Any]:
    """Map a function that changes a run over a population, reusing the memory of the population if it is donated.

    Args:
      function: `function(run, *shared) -> (run, result)`, a pure function that keeps the run's shapes and dtypes.
      mesh: as for `map_runs`.
      runs_per_batch: as for `map_runs`.

    Returns:
      `updated(population, *shared, used=None) -> (population, results)`, otherwise as in `map_runs`.
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
    """Apply a function to the used rows of a population, which are the first ones, `size` at a time.

    The number of batches is data, so that runs may stop without another compilation.
    """
    rows = len(used)

    def some(tree, start):
        return jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, start, size), tree)

    def batch(number, state):
        first = number * size
        start = jnp.minimum(first, rows - size)  # the last batch may overlap the previous one
        before = some(state, start)
        runs = before[0] if updates else some(population, start)
        if size == 1:  # faster without a batch axis
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
    """Run a function of a device's part of a population, and of what all devices share, on every device."""

    def everywhere(population, used, *shared):
        runs, whole = PartitionSpec(RUNS), PartitionSpec()
        specs = (runs, runs, *(whole for _ in shared))
        # Only `runs` is a manual axis. For devices that share a batch, the compiler inserts the communication that
        # means over the batch and random bits need. If no devices share a batch, `data` is manual too, since JAX
        # supports callbacks such as `jax.debug.print` only then. The program has no collectives of its own, so the
        # replication check would have nothing to check.
        by_hand = {RUNS} if mesh.shape[DATA] > 1 else {RUNS, DATA}
        results = jax.shard_map(
            function, mesh=mesh, in_specs=specs, out_specs=runs, axis_names=by_hand, check_vma=False
        )(population, used, *shared)
        return lax.with_sharding_constraint(results, NamedSharding(mesh, runs))

    return everywhere

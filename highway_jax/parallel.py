"""Where runs live: devices, and how a function of one run is mapped over them."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

RUNS = "runs"


def split_cpu(devices: int | None = None) -> None:
    """Make JAX see the CPU as several devices, one per core by default.

    XLA parallelizes the small products of thin networks badly by itself; runs split over such devices
    keep every core busy. Call it before JAX is first used; without effect on accelerators.
    """
    jax.config.update("jax_num_cpu_devices", devices or cpu_cores())


def cpu_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def runs_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the single axis `runs` over the given devices, all by default."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (RUNS,))


def split_runs(mesh: Mesh, population: Any) -> Any:
    """Put a population on the mesh, its leading axis split over the devices."""
    return jax.device_put(population, over_runs(mesh))


def over_runs(mesh: Mesh) -> NamedSharding:
    """How a population's arrays lie on the mesh: their leading axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec(RUNS))


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Put arrays whole on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def padded(num_runs: int, mesh: Mesh) -> int:
    """The smallest number of runs, at least `num_runs`, that the mesh's devices can share evenly."""
    return -(-num_runs // mesh.size) * mesh.size


def free_memory(mesh: Mesh) -> int | None:
    """Bytes still free on a device of the mesh, or None where the device does not say (a CPU)."""
    stats = mesh.devices.flat[0].memory_stats() or {}
    return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None


def map_runs(function: Callable[..., Any], mesh: Mesh, runs_per_batch: int) -> Callable[..., Any]:
    """Map a function of one run over a population that is split over the mesh.

    Args:
      function: `function(run, *shared)`, pure.
      mesh: from `runs_mesh`.
      runs_per_batch: how many runs a device takes through the function in lockstep, at most all it has;
        the batches follow one another.

    Returns:
      `mapped(population, *shared)`: every leaf of the population and of the result has a leading axis
      of runs, divisible by the number of devices. Devices do not communicate.
    """

    def on_device(population, *shared):
        def one(run):
            return function(run, *shared)

        if runs_per_batch == 1:  # cheaper without a batch axis
            return lax.map(one, population)
        if runs_per_batch >= jax.tree.leaves(population)[0].shape[0]:
            return jax.vmap(one)(population)
        return lax.map(one, population, batch_size=runs_per_batch)

    def mapped(population, *shared):
        runs, whole = PartitionSpec(RUNS), PartitionSpec()
        specs = (runs, *(whole for _ in shared))
        # Without collectives there is nothing for the replication check to check.
        return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=runs, check_vma=False)(population, *shared)

    return mapped

"""How many runs fit into memory, and how many a device can train in lockstep."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

CPU_MEMORY = 2**29  # bytes for the runs that are in memory together


class MemoryTooSmall(ValueError):
    """Memory does not hold all runs that are to be trained side by side."""


class RunTooLarge(MemoryTooSmall):
    """Memory does not hold a single run.

    Args:
      need: the bytes that a run needs.
      memory: the bytes that are available.
    """

    def __init__(self, need: int, memory: int):
        super().__init__(f"a single run takes {need / 2**30:,.1f} GiB of memory, and there are {memory / 2**30:,.1f}")


@dataclass(frozen=True)
class RunMemory:
    """The device memory for training one run, in bytes.

    Attributes:
      state: its hyperparameters and state, which stay in memory while it is in the population.
      working: the additional memory during an epoch: activations, gradients, and copies of the state before and after.
      batches: the batches of an epoch, which all runs share.
    """

    state: int
    working: int
    batches: int


def runs_in_memory(run: Any, num_runs: int, devices: int, memory: int | None) -> int:
    """Choose how many runs to train side by side; the others follow.

    On a CPU, more runs at a time are not faster, so 512 MiB of runs are kept in memory. On an accelerator, runs take up
    to half of the free memory, which leaves the other half for activations and gradients.

    Args:
      run: one run, or the shapes and dtypes of its leaves.
      num_runs: the total number of runs.
      devices: the number of devices that share them.
      memory: the free bytes of each device, from `parallel.free_memory`; None for a CPU.

    Returns:
      The number of runs.
    """
    room = CPU_MEMORY if memory is None else devices * memory // 2
    return min(num_runs, max(1, room // num_bytes(run) // devices) * devices)


def memory_of_a_run(epoch: Callable[[Any, Any], Any], run: Any, batches: Any, device: Any = None) -> RunMemory:
    """Ask the compiler how much memory an epoch of one run needs. Nothing is trained.

    Args:
      epoch: `epoch(run, batches)`, which trains one run.
      run: the run, or its shapes and dtypes.
      batches: the batches, or their shapes and dtypes.
      device: the device to compile for, which need not be attached; JAX's first device by default.
    """
    place = None if device is None else SingleDeviceSharding(device)

    def placed(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)

    usage = jax.jit(epoch).lower(placed(run), placed(batches)).compile().memory_analysis()
    assert usage is not None
    working = usage.temp_size_in_bytes + 2 * usage.output_size_in_bytes
    return RunMemory(num_bytes(run), working, num_bytes(batches))


def runs_in_lockstep(run: RunMemory, runs: int, memory: int) -> int:
    """Choose how many of a device's runs to train in lockstep, at least one, given the free `memory` in bytes."""
    return int(min(runs, max(1, (0.8 * memory - run.batches) // run.working)))


def num_bytes(tree: Any) -> int:
    """The size in bytes of a tree of arrays, or of their shapes and dtypes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

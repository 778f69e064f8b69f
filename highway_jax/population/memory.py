"""How many runs fit: side by side in memory, and in lockstep on a device."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

CPU_MEMORY = 2**29  # bytes of runs side by side


class MemoryTooSmall(ValueError):
    """Memory does not hold the runs that are to be trained side by side."""


class RunTooLarge(MemoryTooSmall):
    """Memory does not hold a single run.

    Args:
      need: bytes that a run takes.
      memory: bytes that there are.
    """

    def __init__(self, need: int, memory: int):
        super().__init__(f"a single run takes {need / 2**30:,.1f} GiB of memory, and there are {memory / 2**30:,.1f}")


@dataclass(frozen=True)
class RunMemory:
    """What training a run takes of a device's memory, in bytes.

    Attributes:
      state: its hyperparameters and state, for as long as it is in the population.
      working: what its epoch needs besides: activations, gradients, and a copy of its state going in and coming out.
      batches: an epoch's batches, which all runs share.
    """

    state: int
    working: int
    batches: int


def runs_in_memory(run: Any, num_runs: int, devices: int, memory: int | None) -> int:
    """How many runs should be trained side by side, the others after them.

    On a CPU, where more at a time are no faster, as many as half a gigabyte holds; on an accelerator as many
    as half of its memory does: the rest is to work in.

    Args:
      run: one run, or its leaves' shapes and dtypes.
      num_runs: how many there are in all.
      devices: that will share them.
      memory: bytes free on each device, as `parallel.free_memory` says: None for a CPU.
    """
    room = CPU_MEMORY if memory is None else devices * memory // 2
    return min(num_runs, max(1, room // num_bytes(run) // devices) * devices)


def memory_of_a_run(epoch: Callable[[Any, Any], Any], run: Any, batches: Any, device: Any = None) -> RunMemory:
    """Ask the compiler what one run's epoch needs; nothing is trained.

    Args:
      epoch: `epoch(run, batches)`, which trains one run.
      run, batches: its arguments, or their shapes and dtypes.
      device: compile for this one, which need not be there; by default for JAX's first.
    """
    place = None if device is None else SingleDeviceSharding(device)

    def placed(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)

    usage = jax.jit(epoch).lower(placed(run), placed(batches)).compile().memory_analysis()
    assert usage is not None
    working = usage.temp_size_in_bytes + 2 * usage.output_size_in_bytes
    return RunMemory(num_bytes(run), working, num_bytes(batches))


def runs_in_lockstep(run: RunMemory, runs: int, memory: int) -> int:
    """How many of a device's runs can train in lockstep in the `memory` (bytes) free beside them; at least one."""
    return int(min(runs, max(1, (0.8 * memory - run.batches) // run.working)))


def num_bytes(tree: Any) -> int:
    """Bytes of a tree of arrays, or of their shapes and dtypes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

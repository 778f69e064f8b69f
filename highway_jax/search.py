"""A population of runs: sample hyperparameters, start, train an epoch, rank, stop the worst."""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, SingleDeviceSharding

from highway_jax import parallel, training
from highway_jax.activations import ACTIVATIONS
from highway_jax.data import Array, Split, shuffled_batches
from highway_jax.training import Hyperparameters, Recipe, Run

CPU_MEMORY = 2**29  # bytes of runs side by side
LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """Where a random search draws hyperparameters from (Section 3.1). Equal ends fix a hyperparameter.

    The paper gives the bias's range; the others are this project's.

    Attributes:
      learning_rate: (low, high), log-uniform.
      momentum: (low, high), uniform.
      decay: (low, high) of the learning rate's factor per epoch, uniform.
      activation: the names to choose from.
      transform_bias: (low, high), uniform.

    Raises:
      ValueError: for an inverted range, a value outside what a hyperparameter can be, an unknown name.
    """

    learning_rate: tuple[float, float] = (1e-3, 1.0)
    momentum: tuple[float, float] = (0.8, 0.99)
    decay: tuple[float, float] = (0.9, 1.0)
    activation: tuple[str, ...] = ACTIVATIONS
    transform_bias: tuple[float, float] = (-10.0, -1.0)

    def __post_init__(self) -> None:
        _check_range("learning_rate", self.learning_rate, "above 0", lambda v: v > 0)
        _check_range("momentum", self.momentum, "in [0, 1)", lambda v: 0 <= v < 1)
        _check_range("decay", self.decay, "in (0, 1]", lambda v: 0 < v <= 1)
        _check_range("transform_bias", self.transform_bias, "finite", lambda v: True)
        if not self.activation or not set(self.activation) <= set(ACTIVATIONS):
            raise ValueError(f"activation is {self.activation}; it must be one or more of {', '.join(ACTIVATIONS)}")


def is_number(value: Any) -> bool:
    """Whether a value is a number, and finite as float32; True and False are none."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and -LARGEST <= value <= LARGEST


def _check_range(name: str, ends: tuple[float, float], meaning: str, allowed: Callable[[float], bool]) -> None:
    def valid(value) -> bool:
        return is_number(value) and allowed(float(np.float32(value)))  # as it will be used: 0.99999999 is 1

    with np.errstate(over="ignore"):
        if len(ends) != 2 or not all(map(valid, ends)) or not np.isfinite(np.float32(ends[1]) - np.float32(ends[0])):
            raise ValueError(f"{name} is {ends}; it must be a range (low, high) of numbers, each {meaning}")
    if ends[0] > ends[1]:
        raise ValueError(f"{name} is {ends}, an inverted range; low must not be above high")


def sample(space: SearchSpace, key: jax.Array) -> Hyperparameters:
    """Draw one run's hyperparameters, all scalars, from a key of its own."""

    def uniform(key, ends):
        return jax.random.uniform(key, (), jnp.float32, *ends)

    keys = jax.random.split(key, 5)
    names = jnp.array([ACTIVATIONS.index(name) for name in space.activation], jnp.int32)
    chosen = jax.random.randint(keys[3], (), 0, len(names), jnp.int32)
    return Hyperparameters(
        # Clipped because exp(log(rate)) can round to outside the range.
        learning_rate=jnp.clip(
            jnp.exp(uniform(keys[0], tuple(map(math.log, space.learning_rate)))), *space.learning_rate
        ),
        momentum=uniform(keys[1], space.momentum),
        decay=uniform(keys[2], space.decay),
        activation=names[chosen],
        transform_bias=uniform(keys[4], space.transform_bias),
    )


def sample_population(space: SearchSpace, seed: int, num_runs: int, first_run: int = 0) -> Hyperparameters:
    """Draw the hyperparameters of runs `first_run`, `first_run` + 1, ...; all of shape (num_runs,).

    Run i's depend on the seed and on i alone: a larger search begins with the smaller one's runs, and searches
    over several kinds of network draw the same values for what they have in common.
    """
    key, _ = _keys(seed)

    def draw(run: jax.Array) -> Hyperparameters:
        return sample(space, jax.random.split(jax.random.fold_in(key, run))[0])

    return jax.jit(functools.partial(lax.map, draw))(first_run + jnp.arange(num_runs, dtype=jnp.int32))


def init_population(
    recipe: Recipe, hyperparameters: Hyperparameters, seed: int, images: Array, mesh: Mesh, first_run: int = 0
) -> Run:
    """Start a population: draw its initial weights, split over the mesh.

    Run i's weights depend on its hyperparameters, the seed and i alone.

    Args:
      recipe: what is trained.
      hyperparameters: the runs', of shape (runs,): from `sample_population`, or any others.
      seed: the search's seed.
      images: any batch of images; only its shape and dtype matter.
      mesh: from `parallel.runs_mesh`.
      first_run: the first run's number.

    Returns:
      A `Run` whose leaves have a leading axis of runs, rounded up to what the mesh's devices can share evenly: the
      runs too many have the last one's hyperparameters.
    """
    # Its own array: the images may live on another mesh, or be a whole dataset.
    example = np.zeros((1, *images.shape[1:]), images.dtype)
    count = len(hyperparameters.learning_rate)
    total = parallel.padded(count, mesh)
    padded = jax.tree.map(lambda leaf: np.pad(np.asarray(leaf), (0, total - count), "edge"), hyperparameters)
    numbered = parallel.split_runs(mesh, (np.arange(first_run, first_run + total, dtype=np.int32), padded))
    return _start(recipe, mesh, numbered, _keys(seed)[0], example)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _start(recipe: Recipe, mesh: Mesh, numbered: tuple[Any, Hyperparameters], key: jax.Array, example: Array) -> Run:
    def start(numbered: tuple[jax.Array, Hyperparameters], key: jax.Array, example: Array) -> Run:
        run, hp = numbered
        weights = jax.random.split(jax.random.fold_in(key, run))[1]
        return training.init(recipe, hp, weights, example)

    # One after another: all at once would need the memory of every initializer's alternatives.
    return parallel.map_runs(start, mesh, runs_per_batch=1)(numbered, key, example)


def choose_runs_in_memory(run: Run, num_runs: int, devices: int, memory: int | None) -> int:
    """How many of a search's runs should be trained side by side, the others after them.

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


@dataclasses.dataclass(frozen=True)
class RunMemory:
    """What training a run takes of a device's memory, in bytes.

    Attributes:
      state: its hyperparameters, parameters and optimizer state, for as long as it is in the population.
      working: what its epoch needs besides: activations, gradients, and a copy of its state going in and coming out.
      batches: an epoch's batches, which all runs share.
    """

    state: int
    working: int
    batches: int


def memory_of_a_run(
    recipe: Recipe, run: Run, train: Split, batch_size: int, device: jax.Device | None = None
) -> RunMemory:
    """Ask the compiler what one run's epoch needs; nothing is trained.

    Args:
      recipe, run, train, batch_size: what will be trained, and on what; shapes and dtypes are enough.
      device: compile for this one, which need not be there; by default for JAX's first.
    """
    place = None if device is None else SingleDeviceSharding(device)

    def placed(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)

    batches = jax.eval_shape(lambda split: shuffled_batches(split, epoch_key(0, 0), batch_size), train)
    epoch = jax.jit(lambda run, batches: training.train_epoch(recipe, run, batches))
    usage = epoch.lower(placed(run), placed(batches)).compile().memory_analysis()
    assert usage is not None
    working = usage.temp_size_in_bytes + 2 * usage.output_size_in_bytes
    return RunMemory(num_bytes(run), working, num_bytes(batches))


def num_bytes(tree: Any) -> int:
    """Bytes of a tree of arrays, or of their shapes and dtypes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def choose_runs_per_batch(
    recipe: Recipe, population: Run, train: Split, batch_size: int, mesh: Mesh, memory: int | None = None
) -> int:
    """How many runs a device should train in lockstep.

    One on a CPU: a thin network's weights and activations then stay in a core's cache. On an accelerator,
    which needs many runs to be busy, as many as memory holds beside the population, by `memory_of_a_run`.

    Args:
      recipe, population, train, batch_size, mesh: what will be trained, on what and where.
      memory: bytes free on each device; asked of the device by default.
    """
    here = len(jax.tree.leaves(population)[0]) // mesh.shape[parallel.RUNS]
    memory = parallel.free_memory(mesh) if memory is None else memory
    if memory is None:
        return 1 if mesh.devices.flat[0].platform == "cpu" else here
    run = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), population)
    return fitting_runs_per_batch(memory_of_a_run(recipe, run, train, batch_size), here, memory)


def fitting_runs_per_batch(run: RunMemory, runs: int, memory: int) -> int:
    """How many of a device's runs can train in lockstep in the `memory` (bytes) free beside them; at least one."""
    return int(min(runs, max(1, (0.8 * memory - run.batches) // run.working)))


def population_epoch(
    recipe: Recipe, batch_size: int, mesh: Mesh, runs_per_batch: int
) -> Callable[[Run, Split, jax.Array], tuple[Run, jax.Array]]:
    """Build the compiled function that trains a whole population for an epoch.

    All runs see the same batches in the same order, gathered once.

    Args:
      recipe: what is trained.
      batch_size: examples per step; the mesh's `data` must divide it.
      mesh: where the population lives.
      runs_per_batch: how many runs a device trains in lockstep; see `choose_runs_per_batch`.

    Returns:
      `epoch(population, train, key) -> (population, losses)`, with the epoch's mean training loss of
      every run, (runs,), inf where it has diverged. The given population is donated: use the returned one.
    """
    train_runs = parallel.update_runs(
        lambda run, batches: training.train_epoch(recipe, run, batches), mesh, runs_per_batch
    )

    def epoch(population: Run, train: Split, key: jax.Array) -> tuple[Run, jax.Array]:
        batches = parallel.split_batches(mesh, shuffled_batches(train, key, batch_size))
        population, losses = train_runs(population, batches)
        return population, jnp.where(jnp.isnan(losses), jnp.inf, losses)

    return jax.jit(epoch, donate_argnums=0)


def epoch_key(seed: int, epoch: int) -> jax.Array:
    """The key that orders an epoch's batches: one for all runs."""
    return jax.random.fold_in(_keys(seed)[1], epoch)


def _keys(seed: int) -> jax.Array:
    """The two keys of a search: the runs' and the data's."""
    return jax.random.split(jax.random.key(seed, impl=training.PRNG))


@jax.jit
def take_run(population: Any, run: int | jax.Array) -> Any:
    """One run's entry of a population, or of any tree whose leaves have a leading axis of runs."""
    return jax.tree.map(lambda leaf: leaf[run], population)


def take_runs(population: Run, runs: np.ndarray, mesh: Mesh) -> Run:
    """A smaller population of some of a population's runs, (kept,), split over the mesh anew.

    It is rounded up to what the devices can share evenly, by repeating the last one.
    """
    rows = np.pad(runs, (0, parallel.padded(len(runs), mesh) - len(runs)), "edge")
    return _take_rows(mesh, population, rows)


@functools.partial(jax.jit, static_argnums=0)
def _take_rows(mesh: Mesh, population: Run, rows: Array) -> Run:
    some = jax.tree.map(lambda leaf: leaf[rows], population)
    return lax.with_sharding_constraint(some, parallel.over_runs(mesh))


@dataclasses.dataclass(frozen=True)
class Ranking:
    """A population's outcome, from its training curves; see `rank`.

    Attributes:
      best_loss: (runs,) the lowest of each run's mean training losses; inf if it never had a finite one.
      best_epoch: (runs,) the epoch of that loss, from 1; 0 if there is none.
      final_loss: (runs,) the loss of its last epoch, inf if it has diverged; NaN if it never began.
      diverged: (runs,) whether it has diverged.
      epochs: (runs,) how many it was trained for.
      order: (runs,) run indices, the best first.
    """

    best_loss: np.ndarray
    best_epoch: np.ndarray
    final_loss: np.ndarray
    diverged: np.ndarray
    epochs: np.ndarray
    order: np.ndarray

    def mean_of_best(self, count: int = 10) -> float:
        """Mean best loss of the best `count` runs, of all if there are fewer (Figure 1, right)."""
        return float(self.best_loss[self.order[:count]].mean())

    def median(self) -> float:
        """Median best loss of all runs, diverged ones included with the best they had."""
        return float(np.median(self.best_loss))


def rank(curves: np.ndarray) -> Ranking:
    """Rank runs by the lowest of their epochs' mean training losses.

    Args:
      curves: (runs, epochs) mean training losses, inf once a run has diverged. A run was trained until its last
        number; NaN is a loss that is not there, or not kept.
    """
    losses = np.where(np.isfinite(curves), curves, np.inf)
    best_loss = losses.min(axis=1)
    known = ~np.isnan(curves)
    epochs = np.where(known.any(axis=1), curves.shape[1] - known[:, ::-1].argmax(axis=1), 0)
    return Ranking(
        best_loss=best_loss,
        best_epoch=np.where(np.isfinite(best_loss), losses.argmin(axis=1) + 1, 0),
        final_loss=curves[np.arange(len(curves)), np.maximum(epochs, 1) - 1],
        diverged=np.isinf(curves).any(axis=1),
        epochs=epochs,
        order=np.argsort(best_loss, kind="stable"),
    )


@dataclasses.dataclass(frozen=True)
class Halving:
    """Successive halving (Jamieson and Talwalkar, arXiv:1502.07943): the worst runs stop, early and often.

    Attributes:
      every: epochs after which a share of the runs stops, again and again.
      keep: the share of the runs that goes on, rounded up.
      at_least: how many go on in any case, such as ten for the mean of the best ten.

    Raises:
      ValueError: for a number that is out of range, or not whole where it must be.
    """

    every: int
    keep: float = 0.5
    at_least: int = 1

    def __post_init__(self) -> None:
        for name in "every", "at_least":
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be an integer of at least 1")
        if not is_number(self.keep) or not 0 < self.keep < 1:
            raise ValueError(f"keep is {self.keep!r}; it must be between 0 and 1")

    def due(self, epoch: int) -> bool:
        """Whether runs stop after this epoch (from 1)."""
        return epoch % self.every == 0

    def num_kept(self, num_runs: int) -> int:
        """How many of so many runs go on."""
        kept = math.ceil(round(self.keep * num_runs, 6))  # 0.1 * 30 is above 3
        return max(kept, min(self.at_least, num_runs))

    def kept(self, curves: np.ndarray) -> np.ndarray:
        """Which runs go on, ascending: those with the lowest losses so far, before any that has diverged.

        Args:
          curves: (runs, epochs) as for `rank`, so far.
        """
        ranking = rank(curves)
        order = np.lexsort((ranking.best_loss, ranking.diverged))
        return np.sort(order[: self.num_kept(len(curves))])

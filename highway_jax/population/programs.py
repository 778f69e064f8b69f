"""The compiled programs of a search, which start, train and evaluate the runs of each group."""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from highway_jax import parallel
from highway_jax.data import batch_order, shuffled_batches
from highway_jax.keys import from_data, implementations, to_data
from highway_jax.population import memory, run
from highway_jax.population.ranking import TRAIN
from highway_jax.population.run import Run
from highway_jax.population.search import Search, keys
from highway_jax.population.space import Columns
from highway_jax.population.task import Metrics, Task
from highway_jax.population.tracing import REMEMBERED, Traced

VALUE_NEEDED = (jax.errors.ConcretizationTypeError, TypeError)  # raised by code that needs the value of a tracer


class Group:
    """Runs that are compiled together because their static hyperparameters are equal.

    Args:
      search: the search.
      static: the values of the hyperparameters that are not traced.
      mesh: the devices that hold the runs.

    Attributes:
      task: the task as a function of traced hyperparameters only, for data of the search's shapes and dtypes.
      batch: shapes and dtypes of a batch.
      shapes: shapes and dtypes of one `Run`.
      numbers: the names of all numbers that the task reports.
      traced: the traced task.
      programs: the compiled programs.

    Raises:
      ValueError: if the task cannot be traced, or returns a wrong state or wrong metrics.
      TypeError: if the task cannot be traced; the message names the hyperparameter if one is the cause.
    """

    def __init__(self, search: Search, static: Mapping[str, Any], mesh: Mesh):
        self.search, self.mesh = search, mesh
        self.batch = _batch(search.train, search.batch_size)
        task = search.task.with_static(static, search.space.activations)
        traced = search.space.traced({name: values[:1] for name, values in search.drawn.items()})
        hp = {name: jax.ShapeDtypeStruct(values.shape[1:], values.dtype) for name, values in traced.items()}
        try:
            self.traced, self.numbers = self._trace(task, hp)
        except VALUE_NEEDED as error:
            raise self._explained(error, static, hp) from error
        self.task = self.traced.task
        self.shapes = jax.eval_shape(functools.partial(run.start, self.task), hp, _key(), self.batch)
        self.programs = _compiled(self.traced, mesh, search.evaluate_batch_size)

    def _trace(self, task: Task, hp: Mapping[str, Any]) -> tuple["TracedTask", tuple[str, ...]]:
        task, key = _storable(task), _key()
        with _tracing("init"):
            init = Traced(task.init, hp, key, self.batch)
        with _tracing("step"):
            step = Traced(task.step, hp, init.shapes, self.batch, key)
        if not isinstance(step.shapes, tuple) or len(step.shapes) != 2:
            raise TypeError(f"the task's step returns a {type(step.shapes).__name__}; it must return (state, metrics)")
        after, metrics = step.shapes
        _check_same(init.shapes, after)
        _check_numbers("step", metrics, self.search.batch_size)
        names, evaluate = [TRAIN + name for name in metrics], []
        for split, examples in self.search.evaluate.items():
            count = run.length(examples)
            size = min(self.search.evaluate_batch_size or count, count)
            for examples_at_a_time in filter(None, (size, count % size)):
                batch = _batch(examples, examples_at_a_time)
                with _tracing(f"evaluate on {split!r}"):
                    evaluate.append(Traced(task.evaluate, hp, init.shapes, batch))
                _check_numbers("evaluate", evaluate[-1].shapes, examples_at_a_time)
            names += [f"{split}_{name}" for name in evaluate[-1].shapes]
        return TracedTask(init, step, tuple(evaluate)), tuple(names)

    def _explained(self, error: Exception, static: Mapping[str, Any], hp: Mapping[str, Any]) -> Exception:
        """Return an error that names the traced hyperparameter that caused `error`, or `error` itself if none did."""
        space = self.search.space
        first = {name: values[0] for name, values in space.readable(self.search.drawn, 1).items()}
        for name in hp:
            value = first[name].item() if isinstance(first[name], np.generic) else first[name]
            others = {other: hp[other] for other in hp if other != name}
            try:
                task = self.search.task.with_static({**static, name: value}, space.activations - {name})
                self._trace(task, others)
            except VALUE_NEEDED:
                continue
            takes = "highway_jax.Dropout (for NNX, highway_jax.nnx.Dropout), population.schedules"
            if name in space.activations:
                takes = f"hp[{name!r}](x), and this library's layers"
            return TypeError(
                f"the hyperparameter {name!r} is traced, but the task needs its value ({type(error).__name__}); make "
                f"it choice(..., static=True), or use what takes traced values: {takes}"
            )
        return error

    def start(self, columns: Columns, members: np.ndarray) -> Run:
        """Start a population.

        Args:
          columns: the hyperparameters of all runs of the search.
          members: (rows,) the index of each row's run, which must be of this group; -1 for padding.
        """
        runs = np.where(members < 0, members.max(), members)
        hp = self.search.space.traced({name: values[runs] for name, values in columns.items()})
        example = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), self.batch)
        numbered = parallel.split_runs(self.mesh, (hp, self.search.own_seeds[runs]))
        return self.programs.start(numbered, keys(self.search.seed)[0], example)

    def train(
        self, population: Run, batches: Any, runs_per_batch: int, members: np.ndarray | None = None
    ) -> tuple[Run, Metrics]:
        """Train a population for one epoch, reusing its memory.

        Returns:
          The population and its metrics, each of shape (rows,); those of padding rows are meaningless.
        """
        return self.programs.train(population, batches, runs_per_batch, self._used(members))

    def evaluate(self, population: Run, split: Any, runs_per_batch: int, members: np.ndarray | None = None) -> Metrics:
        """Evaluate a population on a split; returns metrics as `train` does."""
        return self.programs.evaluate(population, split, runs_per_batch, self._used(members))

    def _used(self, members: np.ndarray | None) -> jax.Array | None:
        return None if members is None else parallel.split_runs(self.mesh, members >= 0)

    def runs_per_batch(self, runs: int, free: int | None, device: jax.Device | None = None) -> int:
        """Choose how many runs a device trains in lockstep.

        On a CPU it is one, so that the weights and activations of a thin network stay in the cache of a core. An
        accelerator needs many runs to be busy, so it is as many as memory holds.

        Args:
          runs: the number of runs that the device has in memory.
          free: the remaining free bytes, from `parallel.free_memory`.
          device: as for `memory_of_a_run`.
        """
        if free is None:
            return 1 if self.mesh.devices.flat[0].platform == "cpu" else runs
        return memory.runs_in_lockstep(self.memory_of_a_run(device), runs, free)

    def memory_of_a_run(self, device: jax.Device | None = None) -> memory.RunMemory:
        """The memory for training one run, compiled for `device`, or for JAX's first device by default."""
        return memory.memory_of_a_run(functools.partial(run.train_epoch, self.task), self.shapes, self.batches, device)

    @property
    def batches(self) -> Any:
        """Shapes and dtypes of an epoch's batches."""
        steps = self.search.steps_per_epoch
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((steps, *leaf.shape), leaf.dtype), self.batch)


class TracedTask(NamedTuple):
    """The traced functions of a task; `evaluate` is traced once for every shape and dtype of a batch."""

    init: Traced
    step: Traced
    evaluate: tuple[Traced, ...]

    @property
    def task(self) -> Task:
        """The task as it was traced, even if a value that its functions refer to has changed since."""

        def evaluate(*arguments: Any) -> Metrics:
            return next(traced for traced in self.evaluate if traced.takes(*arguments))(*arguments)

        return Task(self.init, self.step, evaluate)

    def digest(self) -> list[str]:
        """Digests of what the functions compute, equal in every process."""
        return [traced.digest() for traced in (self.init, self.step, *self.evaluate)]


class Programs(NamedTuple):
    """The compiled functions that the methods of `Group` call. The number of runs in lockstep is static."""

    start: Any
    train: Any
    evaluate: Any


@functools.lru_cache(maxsize=REMEMBERED)
def _compiled(traced: TracedTask, mesh: Mesh, evaluate_batch_size: int | None) -> Programs:
    """The programs of a task; an equal task that was compiled before shares them."""
    task = traced.task

    def start(numbered: tuple[dict[str, Any], jax.Array], key: jax.Array, example: Any) -> Run:
        hp, seed = numbered
        return run.start(task, hp, jax.random.split(jax.random.fold_in(key, seed))[1], example)

    def train(population: Run, batches: Any, runs_per_batch: int, used: Any = None) -> tuple[Run, Metrics]:
        epoch = functools.partial(run.train_epoch, task)
        population, metrics = parallel.update_runs(epoch, mesh, runs_per_batch)(population, batches, used=used)
        # In a curve, NaN means "not measured", so a diverged run is marked by an infinite loss.
        decisive = ["loss"] if "loss" in metrics else list(metrics)
        finite = jnp.all(jnp.isfinite(jnp.array([metrics[name] for name in decisive])), axis=0)
        marked = {
            name: jnp.where(finite, values, jnp.inf if name in decisive else jnp.nan)
            for name, values in metrics.items()
        }
        return population, marked

    def evaluate(population: Run, split: Any, runs_per_batch: int, used: Any = None) -> Metrics:
        size = evaluate_batch_size or run.length(split)
        one = functools.partial(run.evaluate, task, batch_size=size)
        return parallel.map_runs(one, mesh, runs_per_batch)(population, split, used=used)

    # This program runs once. LLVM's level 1 halves its compile time, and its random numbers are equal bit for bit.
    quickly = {"xla_backend_optimization_level": 1} if mesh.devices.flat[0].platform == "cpu" else None
    return Programs(
        # Runs start one after another. Mapped together, they would hold all alternatives of each initializer in memory.
        jax.jit(parallel.map_runs(start, mesh, runs_per_batch=1), compiler_options=quickly),
        jax.jit(train, static_argnums=2, donate_argnums=0),
        jax.jit(evaluate, static_argnums=2),
    )


def gather_batches(mesh: Mesh, batch_size: int, train: Any, key: jax.Array) -> Any:
    """Gather the batches of an epoch, which all runs see in the same order."""
    gather = gather_from_host if mesh.devices.flat[0].platform == "tpu" else gather_on_devices
    return gather(mesh, batch_size, train, key)


@functools.partial(jax.jit, static_argnums=(0, 1))
def gather_on_devices(mesh: Mesh, batch_size: int, train: Any, key: jax.Array) -> Any:
    """Gather the batches of an epoch in an order drawn on the devices."""
    return parallel.split_batches(mesh, shuffled_batches(train, key, batch_size))


def gather_from_host(mesh: Mesh, batch_size: int, train: Any, key: jax.Array) -> Any:
    """Gather the batches of an epoch in an order drawn on the host's CPU.

    The CPU sorts 60,000 numbers in milliseconds. A TPU's compiler spends more time on a sort than on the whole epoch.
    """
    order = _order(run.length(train), jax.device_put(key, _host()), batch_size)
    return _take_batches(mesh, train, parallel.replicate(mesh, np.asarray(order)))


_order = jax.jit(batch_order, static_argnums=(0, 2))


@functools.partial(jax.jit, static_argnums=0)
def _take_batches(mesh: Mesh, train: Any, order: jax.Array) -> Any:
    return parallel.split_batches(mesh, jax.tree.map(lambda leaf: leaf[order], train))


def _host() -> jax.Device:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS excludes the CPU
        return jax.local_devices()[0]


@jax.jit
def take_run(population: Any, index: int | jax.Array) -> Any:
    """Take one run from a population, or from any tree whose leaves have a leading axis of runs."""
    return jax.tree.map(lambda leaf: leaf[index], population)


@functools.partial(jax.jit, static_argnums=0)
def take_rows(mesh: Mesh, population: Run, rows: Any) -> Run:
    """Take rows of a population as a new population, split over the mesh."""
    some = jax.tree.map(lambda leaf: leaf[rows], population)
    return lax.with_sharding_constraint(some, parallel.over_runs(mesh))


def _storable(task: Task) -> Task:
    """The same task with typed random keys in its state replaced by their data. `init` must be traced first."""
    found: list[Any] = []

    def init(hp: Any, key: jax.Array, batch: Any) -> Any:
        state = jax.tree.map(jnp.asarray, task.init(hp, key, batch))
        found[:] = implementations(state)
        return to_data(state)

    def step(hp: Any, state: Any, batch: Any, key: jax.Array) -> Any:
        return to_data(task.step(hp, from_data(found, state), batch, key))

    def evaluate(hp: Any, state: Any, batch: Any) -> Metrics:
        return task.evaluate(hp, from_data(found, state), batch)

    return Task(init, step, evaluate)


def _key() -> Any:
    """The shape and dtype of a random key."""
    return jax.eval_shape(lambda: jax.random.key(0, impl=run.PRNG))


def _batch(split: Any, size: int) -> Any:
    """The shapes of a batch, and the dtypes that it has on a device."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), jax.dtypes.canonicalize_dtype(leaf.dtype)), split
    )


@contextlib.contextmanager
def _tracing(what: str) -> Iterator[None]:
    """Add a note to any error that says which function of the task was traced."""
    try:
        yield
    except Exception as error:
        error.add_note(f"The error is in the task's {what}, which was traced before any training.")
        raise


def _check_same(before: Any, after: Any) -> None:
    """Reject a step that changes shapes, dtypes or the structure of a run's state."""
    forms = [
        {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (before, after))
    ]
    for name in sorted(forms[0].keys() | forms[1].keys()):
        there, now = (form.get(name, "nothing") for form in forms)
        if there != now:
            raise ValueError(f"a step changes the state's {name} from {there} to {now}; its form must not change")


def _check_numbers(function: str, metrics: Any, batch_size: int) -> None:
    if not isinstance(metrics, Mapping) or not metrics:
        raise TypeError(f"the task's {function} reports {metrics!r}; it must report numbers by name")
    for name, value in metrics.items():
        if not isinstance(name, str) or value.shape not in ((), (batch_size,)) or not _is_real(value):
            raise ValueError(
                f"the task's {function} reports {name!r} of {value.dtype}{list(value.shape)}; it must be a real "
                f"number, or one for each of {batch_size} examples"
            )


def _is_real(value: Any) -> bool:
    return any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))

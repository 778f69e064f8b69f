"""The compiled programs of a search: for each group of runs those that start, train and evaluate them."""

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

VALUE_NEEDED = (jax.errors.ConcretizationTypeError, TypeError)  # what Python raises of a traced value


class Group:
    """Runs that are compiled together: those whose static hyperparameters have the same values.

    Args:
      search: what is done.
      static: the values of what is not traced.
      mesh: where the runs live.

    Attributes:
      task: of traced hyperparameters alone, for data of the search's form.
      batch: shapes and dtypes.
      shapes: one `Run`, in shapes and dtypes.
      numbers: the names of all numbers that it reports.
      traced: the task as it was traced.
      programs: what is compiled.

    Raises:
      ValueError, TypeError: for a task that cannot be traced; naming a hyperparameter where one is to blame.
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
        """An error that comes of a traced hyperparameter, in words that name it; any other error as it is."""
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
          columns: hyperparameters of all of the search's runs.
          members: (rows,) which of them each row is, all of this group; -1 for padding.
        """
        runs = np.where(members < 0, members.max(), members)
        hp = self.search.space.traced({name: values[runs] for name, values in columns.items()})
        example = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), self.batch)
        numbered = parallel.split_runs(self.mesh, (hp, self.search.own_seeds[runs]))
        return self.programs.start(numbered, keys(self.search.seed)[0], example)

    def train(
        self, population: Run, batches: Any, runs_per_batch: int, members: np.ndarray | None = None
    ) -> tuple[Run, Metrics]:
        """An epoch of a population, whose memory is used again; numbers are (rows,) each, those of padding nonsense."""
        return self.programs.train(population, batches, runs_per_batch, self._used(members))

    def evaluate(self, population: Run, split: Any, runs_per_batch: int, members: np.ndarray | None = None) -> Metrics:
        """The numbers of a population on a split, likewise."""
        return self.programs.evaluate(population, split, runs_per_batch, self._used(members))

    def _used(self, members: np.ndarray | None) -> jax.Array | None:
        return None if members is None else parallel.split_runs(self.mesh, members >= 0)

    def runs_per_batch(self, runs: int, free: int | None, device: jax.Device | None = None) -> int:
        """How many runs a device should train in lockstep.

        One on a CPU: a thin network's weights and activations then stay in a core's cache. On an accelerator,
        which needs many runs to be busy, as many as memory holds beside the population.

        Args:
          runs: how many the device has in memory.
          free: bytes free beside them, as `parallel.free_memory` says.
          device: as for `memory_of_a_run`.
        """
        if free is None:
            return 1 if self.mesh.devices.flat[0].platform == "cpu" else runs
        return memory.runs_in_lockstep(self.memory_of_a_run(device), runs, free)

    def memory_of_a_run(self, device: jax.Device | None = None) -> memory.RunMemory:
        """What training one run takes; nothing is trained. It is compiled for JAX's first device by default."""
        return memory.memory_of_a_run(functools.partial(run.train_epoch, self.task), self.shapes, self.batches, device)

    @property
    def batches(self) -> Any:
        """An epoch's batches, in shapes and dtypes."""
        steps = self.search.steps_per_epoch
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((steps, *leaf.shape), leaf.dtype), self.batch)


class TracedTask(NamedTuple):
    """A task's functions; `evaluate` for every form of a batch."""

    init: Traced
    step: Traced
    evaluate: tuple[Traced, ...]

    @property
    def task(self) -> Task:
        """The task that does what was traced, whatever the functions have come to mean since."""

        def evaluate(*arguments: Any) -> Metrics:
            return next(traced for traced in self.evaluate if traced.takes(*arguments))(*arguments)

        return Task(self.init, self.step, evaluate)

    def digest(self) -> list[str]:
        """What it computes, the same in every process."""
        return [traced.digest() for traced in (self.init, self.step, *self.evaluate)]


class Programs(NamedTuple):
    """Compiled functions of populations, as `Group`'s methods call them; the number of runs in lockstep is static."""

    start: Any
    train: Any
    evaluate: Any


@functools.lru_cache(maxsize=REMEMBERED)
def _compiled(traced: TracedTask, mesh: Mesh, evaluate_batch_size: int | None) -> Programs:
    """The programs of a task, those of an equal one if there was one."""
    task = traced.task

    def start(numbered: tuple[dict[str, Any], jax.Array], key: jax.Array, example: Any) -> Run:
        hp, seed = numbered
        return run.start(task, hp, jax.random.split(jax.random.fold_in(key, seed))[1], example)

    def train(population: Run, batches: Any, runs_per_batch: int, used: Any = None) -> tuple[Run, Metrics]:
        epoch = functools.partial(run.train_epoch, task)
        population, metrics = parallel.update_runs(epoch, mesh, runs_per_batch)(population, batches, used=used)
        # NaN would say that there are no numbers; a run that has diverged has some.
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

    # It runs once. LLVM's first level takes half the time, and what it makes draws the same to the last bit.
    quickly = {"xla_backend_optimization_level": 1} if mesh.devices.flat[0].platform == "cpu" else None
    return Programs(
        # One after another: all at once would need the memory of every initializer's alternatives.
        jax.jit(parallel.map_runs(start, mesh, runs_per_batch=1), compiler_options=quickly),
        jax.jit(train, static_argnums=2, donate_argnums=0),
        jax.jit(evaluate, static_argnums=2),
    )


def gather_batches(mesh: Mesh, batch_size: int, train: Any, key: jax.Array) -> Any:
    """An epoch's batches, which all runs see in the same order."""
    gather = gather_from_host if mesh.devices.flat[0].platform == "tpu" else gather_on_devices
    return gather(mesh, batch_size, train, key)


@functools.partial(jax.jit, static_argnums=(0, 1))
def gather_on_devices(mesh: Mesh, batch_size: int, train: Any, key: jax.Array) -> Any:
    """The same, with the order drawn where the batches are."""
    return parallel.split_batches(mesh, shuffled_batches(train, key, batch_size))


def gather_from_host(mesh: Mesh, batch_size: int, train: Any, key: jax.Array) -> Any:
    """The same, with the order drawn by the host's CPU: to sort 60,000 numbers takes it milliseconds, and a TPU's
    compiler longer than all of an epoch's program."""
    order = _order(run.length(train), jax.device_put(key, _host()), batch_size)
    return _take_batches(mesh, train, parallel.replicate(mesh, np.asarray(order)))


_order = jax.jit(batch_order, static_argnums=(0, 2))


@functools.partial(jax.jit, static_argnums=0)
def _take_batches(mesh: Mesh, train: Any, order: jax.Array) -> Any:
    return parallel.split_batches(mesh, jax.tree.map(lambda leaf: leaf[order], train))


def _host() -> jax.Device:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return jax.local_devices()[0]


@jax.jit
def take_run(population: Any, index: int | jax.Array) -> Any:
    """One run's entry of a population, or of any tree whose leaves have a leading axis of runs."""
    return jax.tree.map(lambda leaf: leaf[index], population)


@functools.partial(jax.jit, static_argnums=0)
def take_rows(mesh: Mesh, population: Run, rows: Any) -> Run:
    """Rows of a population, as another one, split over the mesh."""
    some = jax.tree.map(lambda leaf: leaf[rows], population)
    return lax.with_sharding_constraint(some, parallel.over_runs(mesh))


def _storable(task: Task) -> Task:
    """The same task with a state of ordinary arrays: typed random keys as their data. `init` is to be traced first."""
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
    """A random key, in shape and dtype."""
    return jax.eval_shape(lambda: jax.random.key(0, impl=run.PRNG))


def _batch(split: Any, size: int) -> Any:
    """Shapes and dtypes of a batch, as they are on a device."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), jax.dtypes.canonicalize_dtype(leaf.dtype)), split
    )


@contextlib.contextmanager
def _tracing(what: str) -> Iterator[None]:
    """Whatever goes wrong is told with the function that was traced."""
    try:
        yield
    except Exception as error:
        error.add_note(f"This is of the task's {what}, traced before anything is trained.")
        raise


def _check_same(before: Any, after: Any) -> None:
    """Refuse a step that changes the form of a run's state."""
    forms = [
        {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (before, after))
    ]
    for name in sorted(forms[0].keys() | forms[1].keys()):
        there, now = (form.get(name, "nothing") for form in forms)
        if there != now:
            raise ValueError(f"a step changes the state's {name} from {there} to {now}; its form must stay as it is")


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

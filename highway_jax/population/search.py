"""The definition of a search: its runs, their hyperparameters and seeds, and the schedule of their training."""

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from highway_jax.population.arguments import check_fits, check_function, check_is, set_integer, shown
from highway_jax.population.policies import Policy
from highway_jax.population.ranking import TRAIN, mode_of
from highway_jax.population.run import PRNG, length
from highway_jax.population.space import Columns, Space
from highway_jax.population.task import Task

Sampler = Callable[[np.ndarray, Any], Mapping[str, Any]]
"""`sampler(runs, result)` returns hyperparameters by name, each with a value for every run number in `runs`.

`result` is the result of earlier runs. Names that the sampler leaves out are drawn from the space.
"""

Form = jax.ShapeDtypeStruct

MOMENTS = ("best_", "final_")  # prefixes of the columns of metrics in tables
# The columns of tables other than hyperparameters and metrics.
COLUMNS = ("run", "configuration", "seed", "seeds", "runs", "rank", "best_epoch", "epochs", "diverged")


class Step(NamedTuple):
    """An epoch of the runs that are in memory together.

    Attributes:
      part: the number of this set of runs, from 0; parts are trained one after another.
      epoch: the epoch, from 1.
      runs: the number of runs that are trained in it.
    """

    part: int
    epoch: int
    runs: int


@dataclass(frozen=True, kw_only=True)
class Search:
    """The arguments of `fit` that decide its result, checked; `fit` documents them.

    Raises:
      ValueError: if an argument has a wrong value; the message names it.
      TypeError: if an argument has a wrong type; the message names it.
    """

    task: Task
    space: Space
    train: Any
    evaluate: Mapping[str, Any] = field(default_factory=dict)
    num_runs: int
    epochs: int
    batch_size: int
    seeds: int = 1
    seed: int = 0
    first_run: int = 0
    rank_by: str = "train_loss"
    mode: str | None = None
    policy: Policy | None = None
    sampler: Sampler | None = None
    evaluate_every: int | None = 1
    evaluate_batch_size: int | None = 1000
    keep: str = "best"
    columns: Columns | None = None  # the runs' hyperparameters, if they are not drawn

    def __post_init__(self) -> None:
        check_is("task", self.task, Task, "a Task, such as population.supervised returns")
        check_function("task.init", self.task.init, "hp", "key", "batch")
        check_function("task.step", self.task.step, "hp", "state", "batch", "key")
        check_function("task.evaluate", self.task.evaluate, "hp", "state", "batch")
        check_is("evaluate", self.evaluate, Mapping, "a mapping from names to splits")
        check_is("rank_by", self.rank_by, str, "the name of a number")
        if self.policy is not None:
            check_is("policy", self.policy, Policy, "a policy, such as Halving(every=10)")
        if self.sampler is not None:
            check_function("sampler", self.sampler, "runs", "result")
        for name in "num_runs", "epochs", "batch_size", "seeds":
            set_integer(self, name, 1)
        for name in "seed", "first_run":
            set_integer(self, name, 0)
        for name in "evaluate_every", "evaluate_batch_size":
            set_integer(self, name, 1, optional=True)
        if self.mode is None and self.rank_by.endswith("_loss"):
            object.__setattr__(self, "mode", "min")
        if self.keep not in ("best", "all"):
            raise ValueError(f"keep is {self.keep!r}; it must be 'best' or 'all'")
        for name in self.space.names:
            if name in COLUMNS:
                raise ValueError(f"space has {name!r}, but the table has a column {name!r} of its own")
        if isinstance(self.train, Mapping) and self.train.keys() == self.evaluate.keys():
            raise ValueError(f"evaluate has {', '.join(map(repr, self.train))}, as train; it must map names to splits")
        for name, split in {"train": self.train, **self.evaluate}.items():
            _check_arrays(name, split)
        if "train" in self.evaluate:
            raise ValueError("evaluate has a split 'train', whose metrics would have the names of those of training")
        if self.first_run + self.num_runs > 2**31:
            raise ValueError(f"first_run is {self.first_run}; with num_runs it must be at most {2**31}")
        if self.batch_size > length(self.train):
            raise ValueError(
                f"batch_size is {self.batch_size}; it must be at most {length(self.train)}, the number of examples"
            )
        if self.columns is None:
            self._check_whole()

    def _check_whole(self) -> None:
        """Reject a number of runs that leaves a configuration without some seeds or a draw without some grid points."""
        if self.num_runs % self.seeds:
            raise ValueError(f"num_runs is {self.num_runs}; it must be a multiple of seeds, {self.seeds}")
        if self.num_runs % (self.seeds * self.space.points):
            raise ValueError(
                f"num_runs is {self.num_runs}; it must be a multiple of {self.seeds * self.space.points}: the space's "
                f"grids have {self.space.points} points" + (f", with {self.seeds} seeds each" if self.seeds > 1 else "")
            )

    def check_numbers(self, numbers: Collection[str]) -> None:
        """Reject arguments that contradict the names of the numbers that the task reports.

        Raises:
          ValueError: if there is such an argument; the message names it.
        """
        if self.rank_by not in numbers:
            raise ValueError(f"rank_by is {self.rank_by!r}; it must be one of {', '.join(numbers)}")
        mode_of(self.rank_by, self.mode)
        columns = {moment + number + of for moment in MOMENTS for number in numbers for of in ("", "_mean", "_std")}
        if clash := columns & set(self.space.names):
            raise ValueError(f"space has {min(clash)!r}, but the table has a column {min(clash)!r} of its own")
        if self.policy is not None and not self.rank_by.startswith(TRAIN):
            stops = next(filter(self.stops_runs, range(1, self.epochs)), self.epochs)
            if not any(map(self.evaluates, range(1, stops + 1))):
                raise ValueError(
                    f"evaluate_every is {self.evaluate_every}; policy stops runs after epoch {stops}, before which "
                    f"{self.rank_by} must be measured"
                )

    def not_finite(self) -> dict[str, int]:
        """Count the numbers that are NaN or infinite on a device, by array; arrays without any are left out."""
        counts = {}
        for name, split in {"train": self.train, **self.evaluate}.items():
            for path, leaf in jax.tree_util.tree_leaves_with_path(split):
                if jnp.issubdtype(leaf.dtype, jnp.inexact):
                    with np.errstate(over="ignore"):
                        leaf = leaf.astype(jax.dtypes.canonicalize_dtype(leaf.dtype), copy=False)
                    finite = (np if isinstance(leaf, np.ndarray) else jnp).isfinite(leaf)
                    counts[name + jax.tree_util.keystr(path)] = int(finite.size - finite.sum())
        return {name: count for name, count in counts.items() if count}

    def differences(self) -> list[str]:
        """Describe where the examples of a split differ in structure, shape or dtype from those of `train`."""
        return [
            f"{name}{path} is {_in_words(form)} and train{path} is {_in_words(there)}"
            for name, path, form, there in self._other_forms()
        ]

    def other_dtypes(self) -> list[str]:
        """Describe the arrays of a split whose dtypes differ from those of `train`."""
        return [
            f"{name}{path} is of {form.dtype} and train{path} of {there.dtype}"
            for name, path, form, there in self._other_forms()
            if form is not None and there is not None and form.dtype != there.dtype
        ]

    def _other_forms(self) -> Iterator[tuple[str, str, Form | None, Form | None]]:
        """Yield each difference of a split from `train`: split, path, form in the split and form in `train`."""
        train = _forms(self.train)
        for name, split in self.evaluate.items():
            forms = _forms(split)
            for path in sorted(forms.keys() | train.keys()):
                if forms.get(path) != train.get(path):
                    yield name, path, forms.get(path), train.get(path)

    @property
    def runs(self) -> np.ndarray:
        """(num_runs,) the numbers of the runs."""
        return np.arange(self.first_run, self.first_run + self.num_runs, dtype=np.int32)

    @property
    def configurations(self) -> np.ndarray:
        """(num_runs,) the number of each run's configuration."""
        return self.runs // self.seeds

    @property
    def own_seeds(self) -> np.ndarray:
        """(num_runs,) the number that determines the weights of each run, together with the search's seed."""
        return self.runs % self.seeds if self.seeds > 1 else self.runs // self.space.points

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps in an epoch."""
        return length(self.train) // self.batch_size

    def epoch_key(self, epoch: int) -> jax.Array:
        """The key for the order of an epoch's batches, counted from 0; it is the same for all runs."""
        return jax.random.fold_in(keys(self.seed)[1], epoch)

    @functools.cached_property
    def drawn(self) -> Columns:
        """The hyperparameters of all runs, drawn from the space."""
        if self.columns is not None:
            return self.columns
        unique, inverse = np.unique(self.configurations, return_inverse=True)
        return {name: values[inverse] for name, values in self.space.draw(keys(self.seed)[0], unique).items()}

    def part(self, number: int, size: int) -> np.ndarray:
        """The indices of the runs of a part, if parts have `size` runs.

        Unless a sampler or a policy compares runs, the runs of a group are kept together, so that a part needs fewer
        compiled programs.
        """
        if self.sampler is None and self.policy is None:
            order = np.argsort(self.space.groups(self.drawn, np.arange(self.num_runs)), kind="stable")
        else:
            order = np.arange(self.num_runs)
        return order[number * size : (number + 1) * size]

    def plan(self, size: int) -> list[Step]:
        """All steps in order, if parts have `size` runs."""
        steps = []
        for part in range(-(-self.num_runs // size)):
            runs = min(size, self.num_runs - part * size)
            for epoch in range(1, self.epochs + 1):
                steps.append(Step(part, epoch, runs))
                if self.stops_runs(epoch):
                    assert self.policy is not None
                    runs = self.policy.num_kept(runs)
        return steps

    def stops_runs(self, epoch: int) -> bool:
        """Whether runs stop early after this epoch."""
        return self.policy is not None and epoch < self.epochs and self.policy.due(epoch)

    def evaluates(self, epoch: int) -> bool:
        """Whether runs are evaluated after this epoch."""
        return epoch == self.epochs or (self.evaluate_every is not None and epoch % self.evaluate_every == 0)


def keys(seed: int) -> jax.Array:
    """Return the two random keys of a search.

    Args:
      seed: the seed of the search.

    Returns:
      An array of two typed keys: the first for the runs, the second for the order of the data.
    """
    return jax.random.split(jax.random.key(seed, impl=PRNG))


def _check_arrays(name: str, split: Any) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(split)
    lengths = {}
    for path, leaf in leaves:
        if not isinstance(leaf, np.ndarray | jax.Array) or leaf.ndim == 0:
            hint = "; its to_numpy() is one" if hasattr(leaf, "to_numpy") else ""
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} is {shown(leaf)}; it must be a NumPy or JAX array with an axis of "
                f"examples{hint}"
            )
        if not (jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == bool):
            raise TypeError(f"{name}{jax.tree_util.keystr(path)} is of {leaf.dtype}; it must be of numbers")
        check_fits(f"{name}{jax.tree_util.keystr(path)}", leaf)
        lengths[jax.tree_util.keystr(path)] = len(leaf)
    if not lengths or 0 in lengths.values():
        raise ValueError(f"{name} has no examples")
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{count} in {path}" for path, count in lengths.items())
        raise ValueError(f"{name} has arrays of unequal length: {told}")


def _forms(split: Any) -> dict[str, Form]:
    """The shapes and dtypes of an example of a split, by path."""
    return {
        jax.tree_util.keystr(path): Form(leaf.shape[1:], jax.dtypes.canonicalize_dtype(leaf.dtype))
        for path, leaf in jax.tree_util.tree_leaves_with_path(split)
    }


def _in_words(form: Form | None) -> str:
    return "missing" if form is None else f"{form.dtype}{list(form.shape)}"

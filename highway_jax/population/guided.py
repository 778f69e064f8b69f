"""Guided search: hyperparameters from Optuna's TPE, a generation of runs at a time (extra `optuna`).

A generation is the runs that are side by side in memory. What is asked for follows from the seed and the runs before,
and from nothing else: for each generation the study is made again of earlier runs. So a search that was stopped ends
as if it had not been.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from highway_jax.population.result import Result
from highway_jax.population.search import Sampler
from highway_jax.population.space import Choice, Grid, LogUniform, Space, Uniform

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


def tpe(names: Collection[str] | None = None) -> Sampler:
    """A sampler that chooses hyperparameters by Optuna's TPE, from what the runs before have come to.

    The first generation is drawn as in random search; each further one is chosen when those before have ended, the runs
    of a configuration alike. Entries of the space that are made by `uniform`, `log_uniform` and `choice` can be chosen;
    all others are as without a sampler.

    Args:
      names: the hyperparameters that are chosen; by default all that can be.

    Returns:
      A function for `fit(sampler=...)`. It raises a ValueError, before anything is trained, for a space with a grid or
      with nothing to choose, for names that cannot be chosen, and where all runs are in memory at once.

    Raises:
      ImportError: without Optuna.

    Example, ten generations of twenty runs:

        population.fit(task, space, num_runs=200, runs_in_memory=20, sampler=population.tpe(), ...)
    """
    _optuna()

    def sample(runs: np.ndarray, result: Result) -> Mapping[str, Any]:
        assert result.work is not None  # it is `fit`'s
        search = result.work.search
        space = _chosen(search.space.entries, names)
        if len(runs) == result.num_runs:
            raise ValueError(
                f"runs_in_memory must be below num_runs, {len(runs)}: tpe chooses each generation of so many runs from "
                "those before"
            )
        return {} if runs[0] == result.runs[0] else suggest(space, search.seed, runs, result)

    return sample


def suggest(space: Mapping[str, Any], seed: int, runs: np.ndarray, result: Result) -> dict[str, list[Any]]:
    """Choose a generation's hyperparameters, by name.

    Args:
      space: all that is to be chosen.
      seed: the search's.
      runs: the generation's runs' numbers, ascending.
      result: what the runs before have come to.
    """
    optuna, kinds = _optuna(), _distributions(space)
    earlier = optuna_trials(space, result)
    own = int(np.random.SeedSequence((seed, int(runs[0]))).generate_state(1)[0])
    with _quiet(optuna):
        sampler = optuna.samplers.TPESampler(seed=own, n_startup_trials=0)
        study = optuna.create_study(sampler=sampler, direction="maximize" if result.mode == "max" else "minimize")
        study.add_trials(earlier)
        # Some runs of the first configuration may be of an earlier generation.
        params = {trial.user_attrs["run"] // result.seeds: trial.params for trial in earlier}
        configurations = (runs // result.seeds).tolist()
        for configuration in configurations:
            if configuration not in params:
                params[configuration] = study.ask(kinds).params  # keeps away from those asked for before
    columns = {name: [params[configuration][name] for configuration in configurations] for name in space}
    for name, entry in space.items():
        if isinstance(entry, Choice):
            columns[name] = [entry.options[_labels(entry).index(label)] for label in columns[name]]
    return columns


def optuna_trials(space: Mapping[str, Any], result: Result) -> "list[FrozenTrial]":
    """The configurations whose runs have begun as Optuna's trials, for a study of one's own.

    A trial's value is the best number by which its run was ranked, or the mean over its seeds. It is infinite if there
    was none: TPE forgets trials that failed, and is to learn where runs diverge. Where runs were stopped early the
    trial is pruned, at their last epoch. Its attributes are `run`, the number of its first run, and `diverged`.

    Args:
      space: as `fit` got it. Trials have what is from `uniform`, `log_uniform`, `choice` or `grid`; of options that
        Optuna does not hold, such as functions, the positions.
      result: from `fit`, finished or not, or from `load`.

    Raises:
      ValueError: if the hyperparameters are not from the space.
      ImportError: without Optuna.

    Example, for optuna-dashboard:

        study = optuna.create_study(storage="sqlite:///mine.db", study_name="mine")  # direction="maximize" if mode is
        study.add_trials(population.optuna_trials(space, result))
    """
    optuna, kinds, ranking = _optuna(), _distributions(space), result.ranking
    if strange := [name for name in kinds if name not in result.hyperparameters]:
        raise ValueError(f"space has {strange[0]!r}; the result has {', '.join(result.hyperparameters)}")
    columns = Space(space).positions({name: result.hyperparameters[name] for name in kinds})
    begun = np.flatnonzero(ranking.epochs)
    configurations = result.runs[begun] // result.seeds
    trials = []
    for configuration in np.unique(configurations):
        members = begun[configurations == configuration]
        value, last = float(ranking.best[members].mean(dtype=float)), int(ranking.epochs[members].max())
        params = {name: columns[name][members[0]].item() for name in kinds}
        for name, kind in kinds.items():
            if isinstance(space[name], Choice):
                params[name] = kind.choices[params[name]]
        pruned = last < result.epochs
        trials.append(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.COMPLETE,
                value=value,
                params=params,
                distributions=kinds,
                intermediate_values={last: value} if pruned else {},
                user_attrs={"run": int(result.runs[members[0]]), "diverged": bool(ranking.diverged[members].any())},
            )
        )
    return trials


def _chosen(space: Mapping[str, Any], names: Collection[str] | None) -> dict[str, Any]:
    """What of a space TPE chooses."""
    if grids := [name for name, entry in space.items() if isinstance(entry, Grid)]:
        raise ValueError(f"space[{grids[0]!r}] is a grid, which takes all options in turn; for tpe make it a choice")
    able = {name: entry for name, entry in space.items() if isinstance(entry, Uniform | LogUniform | Choice)}
    if strange := [name for name in names or () if name not in able]:
        raise ValueError(f"names has {strange[0]!r}; tpe can choose {', '.join(able) or 'nothing of this space'}")
    chosen = able if names is None else {name: entry for name, entry in able.items() if name in names}
    if not chosen:
        raise ValueError("sampler is tpe, and there is nothing to choose: no uniform, log_uniform or choice")
    return chosen


def _distributions(space: Mapping[str, Any]) -> dict[str, Any]:
    """What of a space Optuna knows, in its words."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    kinds: dict[str, Any] = {}
    for name, entry in space.items():
        if isinstance(entry, Choice):
            kinds[name] = CategoricalDistribution(_labels(entry))
        elif isinstance(entry, Uniform | LogUniform):
            low, high = (float(np.float32(end)) for end in (entry.low, entry.high))  # as a run has them
            kinds[name] = FloatDistribution(low, high, log=isinstance(entry, LogUniform))
    return kinds


def _labels(entry: Choice) -> tuple[Any, ...]:
    """What Optuna gets for the options: themselves if it can hold them and tell them apart (1 and True are one to it),
    otherwise their positions."""
    held = all(option is None or isinstance(option, bool | int | float | str) for option in entry.options)
    if held and len(set(entry.options)) == len(entry.options):
        return entry.options
    return tuple(range(len(entry.options)))


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ImportError("tpe needs Optuna; install it with: pip install 'highway-jax[optuna]'") from error
    return optuna


@contextlib.contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Without a line for every study that is made."""
    usual = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(usual, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(usual)

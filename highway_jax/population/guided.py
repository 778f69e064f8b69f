"""Guided search: hyperparameters from Optuna's TPE, one generation of runs at a time (extra `optuna`).

A generation is the set of runs that are in memory together. Its hyperparameters depend only on the seed and on earlier
runs, because the Optuna study is rebuilt from those runs for every generation. A search that is stopped and resumed
therefore gives the same result as one that is not.
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
    """Return a sampler that chooses hyperparameters with Optuna's TPE, based on the results of earlier runs.

    The first generation is drawn at random from the space. Each later generation is chosen once the previous one has
    ended. All seeds of a configuration get the same hyperparameters. TPE can choose entries of the space made by
    `uniform`, `log_uniform` and `choice`; all others stay as they are without a sampler.

    Before anything is trained, the sampler raises a `ValueError` if the space has a grid or nothing to choose, if
    `names` has a hyperparameter that cannot be chosen, or if all runs are in memory at once.

    Args:
      names: the hyperparameters to choose; by default all that can be chosen.

    Returns:
      A function for the argument `sampler` of `fit`.

    Raises:
      ImportError: if Optuna is not installed.

    Example:
      Ten generations of twenty runs:

      ```python
      population.fit(task, space, num_runs=200, runs_in_memory=20, sampler=population.tpe(), ...)
      ```
    """
    _optuna()

    def sample(runs: np.ndarray, result: Result) -> Mapping[str, Any]:
        assert result.work is not None  # it is `fit`'s
        search = result.work.search
        space = _chosen(search.space.entries, names)
        if len(runs) == result.num_runs:
            raise ValueError(
                f"runs_in_memory must be below num_runs, {len(runs)}: tpe chooses each generation of that many runs "
                "from earlier ones"
            )
        return {} if runs[0] == result.runs[0] else suggest(space, search.seed, runs, result)

    return sample


def suggest(space: Mapping[str, Any], seed: int, runs: np.ndarray, result: Result) -> dict[str, list[Any]]:
    """Choose the hyperparameters of a generation.

    Args:
      space: the entries of the space that are to be chosen.
      seed: the seed of the search.
      runs: the numbers of the generation's runs, ascending.
      result: the results of earlier runs.

    Returns:
      For each hyperparameter, a list with a value for each run.
    """
    optuna, kinds = _optuna(), _distributions(space)
    earlier = optuna_trials(space, result)
    own = int(np.random.SeedSequence((seed, int(runs[0]))).generate_state(1)[0])
    with _quiet(optuna):
        sampler = optuna.samplers.TPESampler(seed=own, n_startup_trials=0)
        study = optuna.create_study(sampler=sampler, direction="maximize" if result.mode == "max" else "minimize")
        study.add_trials(earlier)
        # Some runs of the first configuration may belong to the previous generation.
        params = {trial.user_attrs["run"] // result.seeds: trial.params for trial in earlier}
        configurations = (runs // result.seeds).tolist()
        for configuration in configurations:
            if configuration not in params:
                params[configuration] = study.ask(kinds).params  # away from those asked for in this generation
    columns = {name: [params[configuration][name] for configuration in configurations] for name in space}
    for name, entry in space.items():
        if isinstance(entry, Choice):
            columns[name] = [entry.options[_labels(entry).index(label)] for label in columns[name]]
    return columns


def optuna_trials(space: Mapping[str, Any], result: Result) -> "list[FrozenTrial]":
    """Convert the configurations whose runs have started into Optuna trials, for an Optuna study.

    The value of a trial is the best value of the metric that ranks the runs, averaged over the configuration's seeds.
    It is infinite if no value was finite: TPE ignores failed trials, but should learn where runs diverge. If its runs
    were stopped early, the trial is pruned at their last epoch. Its user attributes are `run`, the number of its first
    run, and `diverged`.

    Args:
      space: the space that was given to `fit`. Trials have the parameters made by `uniform`, `log_uniform`, `choice` or
        `grid`. Options that Optuna cannot store, such as functions, are replaced by their positions.
      result: the result of `fit`, finished or not, or of `load`.

    Returns:
      One trial for each configuration.

    Raises:
      ValueError: if the hyperparameters of the result are not from the space.
      ImportError: if Optuna is not installed.

    Example:
      A study for optuna-dashboard:

      ```python
      study = optuna.create_study(storage="sqlite:///mine.db", study_name="mine", direction="minimize")
      study.add_trials(population.optuna_trials(space, result))
      ```
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
    """The entries of a space that TPE chooses."""
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
    """The entries of a space as Optuna distributions, by name."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    kinds: dict[str, Any] = {}
    for name, entry in space.items():
        if isinstance(entry, Choice):
            kinds[name] = CategoricalDistribution(_labels(entry))
        elif isinstance(entry, Uniform | LogUniform):
            low, high = (float(np.float32(end)) for end in (entry.low, entry.high))  # rounded as in a run
            kinds[name] = FloatDistribution(low, high, log=isinstance(entry, LogUniform))
    return kinds


def _labels(entry: Choice) -> tuple[Any, ...]:
    """The options for Optuna: the options themselves if it can store and distinguish them, otherwise their positions.

    Optuna does not distinguish 1 from True.
    """
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
    """Silence Optuna's log line for every new study."""
    usual = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(usual, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(usual)

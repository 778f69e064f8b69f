"""Guided search: hyperparameters from Optuna's TPE sampler, a generation of runs at a time (extra `optuna`).

The first generation is random search's. What is asked for after it follows from the seed and the runs before, and
from nothing else: for each generation the study is rebuilt from earlier runs. So the study in the workdir, for
optuna-dashboard, is a result like its other files and no state, and a search that was stopped ends as if it had not
been.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.app import errors
from experiments.workdir.files import refuse_links
from highway_jax import files, population
from highway_jax.population import Result
from highway_jax.population.space import Choice, LogUniform
from highway_jax.stack.kinds import KINDS

Space = Mapping[str, Any]  # of distributions, for `population.fit`
STUDIES = "optuna.db"  # in the workdir; a study for every kind of network


def sampler(config: ConfigDict, space: Space, directory: Path, network: str) -> population.Sampler:
    """Guided search for a kind of network, whose generations are `config.runs_in_memory` runs each; tells the
    workdir's study what ended."""

    def sample(runs: np.ndarray, result: Result) -> dict[str, Any]:
        if runs[0] == config.first_run:
            return {}  # drawn, as in random search
        finished = trials(space, network, result)
        if jax.process_index() == 0:
            store(directory, network, finished)
        return suggest(space, network, config.seed, int(runs[0]), len(runs), finished)

    return sample


def store_results(directory: Path, space: Space, results: Mapping[str, Result]) -> None:
    """Tell the study in a workdir, finished or not, all that came out, by kind of network.

    Raises:
      UserError: if the workdir holds a link.
    """
    refuse_links(directory)  # nobody has, where it was finished before
    for network, result in results.items():
        store(directory, network, trials(space, network, result))


def suggest(
    space: Space, network: str, seed: int, first_run: int, count: int, finished: list[Any]
) -> dict[str, np.ndarray]:
    """Ask for a generation's hyperparameters, by name; all of shape (count,).

    Args:
      space: where they are from.
      network: the kind of network.
      seed: the search's.
      first_run: the generation's first run's number.
      count: how many runs it has.
      finished: all earlier runs, from `trials`.
    """
    optuna = _optuna()
    seed = int(np.random.SeedSequence((seed, first_run)).generate_state(1)[0])
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=0))
    study.add_trials(finished)
    kinds = distributions(space, network)
    asked = [study.ask(kinds).params for _ in range(count)]  # each keeps away from those asked for before it
    columns = {name: np.array([params[name] for params in asked]) for name in kinds}
    columns.setdefault("transform_bias", np.full(count, space["transform_bias"].low))
    return columns


def trials(space: Space, network: str, result: Result) -> list[Any]:
    """The runs of a kind of network that have begun, as Optuna's trials; their values are the best losses.

    A run that never had a finite loss has an infinite value: TPE forgets what failed, but is to learn where runs
    diverge. A run that was stopped early is pruned, at its last epoch.

    Args:
      space: where the runs' hyperparameters are from.
      network: the kind of network.
      result: what its runs have come to.
    """
    optuna = _optuna()
    kinds, ranking = distributions(space, network), result.ranking
    found = []
    for index in np.flatnonzero(ranking.epochs).tolist():
        drawn = result.hyperparameters_of(index)
        value, last = float(ranking.best[index]), int(ranking.epochs[index])
        pruned = last < result.epochs
        found.append(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.COMPLETE,
                value=value,
                params={name: drawn[name] for name in kinds},
                distributions=kinds,
                intermediate_values={last: value} if pruned else {},
                user_attrs={"run": int(result.runs[index]), "diverged": bool(ranking.diverged[index])},
            )
        )
    return found


def distributions(space: Space, network: str) -> dict[str, Any]:
    """A search space in Optuna's words, by hyperparameter; without the transform bias where a network has none."""
    _optuna()
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    kinds: dict[str, Any] = {}
    for name, entry in space.items():
        if isinstance(entry, Choice):
            kinds[name] = CategoricalDistribution(entry.options)
        elif name != "transform_bias" or KINDS[network].gated:
            low, high = (float(np.float32(end)) for end in (entry.low, entry.high))  # as a run has them
            kinds[name] = FloatDistribution(low, high, log=isinstance(entry, LogUniform))
    return kinds


def store(directory: Path, network: str, finished: list[Any]) -> None:
    """Add to a network's study in the workdir the trials that it does not have yet.

    A study that cannot be read or written is warned of, since it is told all the next time.
    """
    optuna = _optuna()
    try:
        study = optuna.create_study(storage=study_url(directory), study_name=network, load_if_exists=True)
        study.add_trials(finished[len(study.get_trials(deepcopy=False)) :])
    except Exception as error:  # SQLAlchemy and Alembic have many
        errors.warn(f"{directory / STUDIES} is left as it is: {files.first_line(error)}")


def study_url(directory: Path) -> str:
    """The URL of a workdir's study, for Optuna and optuna-dashboard, whatever characters the path has."""
    from sqlalchemy.engine import URL

    url = URL.create("sqlite", database=str(directory / STUDIES)).render_as_string()
    return url.replace("{", "{{").replace("}", "}}")  # Optuna formats it


def _optuna() -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna

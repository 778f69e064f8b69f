"""Guided search: hyperparameters from Optuna's TPE sampler, a generation of runs at a time (extra `optuna`).

The first generation is random search's. What is asked for after it follows from the seed and the runs before, and
from nothing else: for each generation the study is rebuilt from earlier runs. So the study in the workdir, for
optuna-dashboard, is a result like its other files and no state, and a search that was stopped ends as if it had not
been.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import results, workdir
from experiments.cli import UserError
from highway_jax import files, population
from highway_jax.population.space import Choice, LogUniform
from highway_jax.stack.kinds import KINDS

Space = Mapping[str, Any]  # of distributions, for `population.fit`
STUDIES = "optuna.db"  # in the workdir; a study for every kind of network


def require() -> None:
    """Refuse to begin where Optuna is not installed.

    Raises:
      UserError: naming the extra to install.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UserError("config.sampler is 'tpe', which needs Optuna; install it with: pip install -e '.[optuna]'")


def sampler(config: ConfigDict, space: Space, directory: Path, network: str) -> population.Sampler:
    """Guided search for a kind of network, whose generations are `config.runs_in_memory` runs each; tells the
    workdir's study what ended."""

    def sample(runs: np.ndarray, result: population.Result) -> dict[str, Any]:
        before = int(runs[0]) - config.first_run
        if before == 0:
            return {}  # drawn, as in random search
        columns = {name: values[:before] for name, values in result.hyperparameters.items()}
        finished = trials(space, network, config.first_run, columns, result.curves["train_loss"][:before])
        store(directory, network, finished)
        return suggest(space, network, config.seed, int(runs[0]), len(runs), finished)

    return sample


def store_results(directory: Path, space: Space) -> None:
    """Tell the study in a workdir, finished or not, all that the workdir holds.

    Raises:
      UserError: if the workdir holds a link, or the study cannot be read or written.
    """
    workdir.refuse_links(directory)  # nobody has, where it was finished before
    for network, runs in results.load(directory).networks.items():
        store(directory, network, trials(space, network, int(runs.run[0]), runs.hyperparameters, runs.curves))


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


def trials(
    space: Space, network: str, first_run: int, hyperparameters: Mapping[str, np.ndarray], train_loss: np.ndarray
) -> list[Any]:
    """Finished runs as Optuna's trials; their values are the best losses.

    A run that never had a finite loss has an infinite value: TPE forgets what failed, but is to learn where runs
    diverge. A run that was stopped early is pruned, at its last epoch.

    Args:
      space: where the runs' hyperparameters are from.
      network: the kind of network.
      first_run: the first run's number.
      hyperparameters: the runs', by name, each (runs,); activations by name.
      train_loss: (runs, epochs) as for `population.rank`.
    """
    optuna = _optuna()
    kinds, ranking = distributions(space, network), population.rank(train_loss)
    found = []
    for index, losses in enumerate(train_loss):
        value, last = float(ranking.best[index]), int(ranking.epochs[index])
        pruned = last < len(losses)
        found.append(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.COMPLETE,
                value=value,
                params={name: hyperparameters[name][index].item() for name in kinds},
                distributions=kinds,
                intermediate_values={last: value} if pruned else {},
                user_attrs={"run": first_run + index, "diverged": bool(ranking.diverged[index])},
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

    Raises:
      UserError: if the study cannot be read or written.
    """
    optuna = _optuna()
    try:
        study = optuna.create_study(storage=study_url(directory), study_name=network, load_if_exists=True)
        study.add_trials(finished[len(study.get_trials(deepcopy=False)) :])
    except Exception as error:  # SQLAlchemy and Alembic have many
        raise UserError(f"{directory / STUDIES} cannot be used: {files.first_line(error)}; remove it") from error


def study_url(directory: Path) -> str:
    """The URL of a workdir's study, for Optuna and optuna-dashboard, whatever characters the path has."""
    from sqlalchemy.engine import URL

    url = URL.create("sqlite", database=str(directory / STUDIES)).render_as_string()
    return url.replace("{", "{{").replace("}", "}}")  # Optuna formats it


def _optuna() -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna

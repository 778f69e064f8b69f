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

from experiments import results, trainer, workdir
from experiments.cli import UserError
from experiments.workdir import Outcome
from highway_jax import data, search
from highway_jax.activations import ACTIVATIONS
from highway_jax.blocks import BLOCKS
from highway_jax.search import SearchSpace
from highway_jax.training import Hyperparameters

STUDIES = "optuna.db"  # in the workdir; a study for every kind of network


def require() -> None:
    """Refuse to begin where Optuna is not installed.

    Raises:
      UserError: naming the extra to install.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UserError("config.sampler is 'tpe', which needs Optuna; install it with: pip install -e '.[optuna]'")


def sampler(config: ConfigDict, space: SearchSpace, directory: Path) -> trainer.Sampler:
    """Guided search, whose generations are `config.runs_in_memory` runs each; tells the workdir's study what ended."""

    def sample(network: str, first_run: int, count: int, outcome: Outcome) -> Hyperparameters:
        before = first_run - config.first_run
        if before == 0:
            return search.sample_population(space, config.seed, count, first_run)
        columns = {name: values[:before] for name, values in vars(outcome.hyperparameters).items()}
        columns["activation"] = np.take(ACTIVATIONS, columns["activation"])
        finished = trials(space, network, config.first_run, columns, outcome.train_loss[:before])
        store(directory, network, finished)
        return suggest(space, network, config.seed, first_run, count, finished)

    return sample


def store_results(directory: Path, space: SearchSpace) -> None:
    """Tell the study in a workdir, finished or not, all that the workdir holds.

    Raises:
      UserError: if the workdir holds a link, or the study cannot be read or written.
    """
    workdir.refuse_links(directory)  # nobody has, where it was finished before
    for network, runs in results.load(directory).networks.items():
        store(directory, network, trials(space, network, int(runs.run[0]), runs.hyperparameters, runs.curves))


def suggest(
    space: SearchSpace, network: str, seed: int, first_run: int, count: int, finished: list[Any]
) -> Hyperparameters:
    """Ask for a generation's hyperparameters; all of shape (count,).

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
    columns["activation"] = np.array([ACTIVATIONS.index(name) for name in columns["activation"]], np.int32)
    columns.setdefault("transform_bias", np.full(count, space.transform_bias[0]))
    return Hyperparameters(**{n: c if n == "activation" else c.astype(np.float32) for n, c in columns.items()})


def trials(
    space: SearchSpace, network: str, first_run: int, hyperparameters: Mapping[str, np.ndarray], train_loss: np.ndarray
) -> list[Any]:
    """Finished runs as Optuna's trials; their values are the best losses.

    A run that never had a finite loss has an infinite value: TPE forgets what failed, but is to learn where runs
    diverge. A run that was stopped early is pruned, at its last epoch.

    Args:
      space: where the runs' hyperparameters are from.
      network: the kind of network.
      first_run: the first run's number.
      hyperparameters: the runs', by name, each (runs,); activations by name.
      train_loss: (runs, epochs) as for `highway_jax.search.rank`.
    """
    optuna = _optuna()
    kinds, ranking = distributions(space, network), search.rank(train_loss)
    found = []
    for index, losses in enumerate(train_loss):
        value, last = float(ranking.best_loss[index]), int(ranking.epochs[index])
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


def distributions(space: SearchSpace, network: str) -> dict[str, Any]:
    """A search space in Optuna's words, by hyperparameter; without the transform bias where a network has none."""
    _optuna()
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    def uniform(ends: tuple[float, float], log: bool = False) -> Any:
        low, high = (float(np.float32(end)) for end in ends)  # as a run has them
        return FloatDistribution(low, high, log=log)

    kinds = {
        "learning_rate": uniform(space.learning_rate, log=True),
        "momentum": uniform(space.momentum),
        "decay": uniform(space.decay),
        "activation": CategoricalDistribution(space.activation),
    }
    return kinds | {"transform_bias": uniform(space.transform_bias)} if BLOCKS[network].gated else kinds


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
        raise UserError(f"{directory / STUDIES} cannot be used: {data.first_line(error)}; remove it") from error


def study_url(directory: Path) -> str:
    """The URL of a workdir's study, for Optuna and optuna-dashboard, whatever characters the path has."""
    from sqlalchemy.engine import URL

    url = URL.create("sqlite", database=str(directory / STUDIES)).render_as_string()
    return url.replace("{", "{{").replace("}", "}}")  # Optuna formats it


def _optuna() -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna

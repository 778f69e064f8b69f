"""Guided search in a workdir: `population.tpe`, and a study for optuna-dashboard (extra `optuna`).

The study is output, like the workdir's other files. Finished runs are written to it, and nothing is ever read from it
to choose runs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.app import errors
from experiments.workdir.contents import used
from experiments.workdir.files import refuse_links
from highway_jax import files, population
from highway_jax.population import Result

Space = Mapping[str, Any]  # distributions by name, for `population.fit`
STUDIES = "optuna.db"  # in the workdir; holds a study for every kind of network
PATIENCE = 1  # seconds to wait for a study that another program has locked


def sampler(space: Space, directory: Path, network: str) -> population.Sampler:
    """The sampler of a kind of network; it also writes finished runs to the workdir's study."""
    choose = population.tpe(used(network, space))

    def sample(runs: np.ndarray, result: Result) -> Mapping[str, Any]:
        if runs[0] > result.runs[0] and jax.process_index() == 0:
            store(directory, space, network, result)
        return choose(runs, result)

    return sample


def store_results(directory: Path, space: Space, results: Mapping[str, Result]) -> None:
    """Write all results to the study in a workdir, finished or not.

    Args:
      directory: the workdir.
      space: the space of the runs' hyperparameters.
      results: the results by kind of network.

    Raises:
      UserError: if the workdir holds a symbolic link.
    """
    refuse_links(directory)  # not checked yet if the workdir was already finished
    for network, result in results.items():
        store(directory, space, network, result)


def store(directory: Path, space: Space, network: str, result: Result) -> None:
    """Add the runs that a network's study in the workdir does not have yet.

    If the study cannot be read or written, this is only a warning: the next call adds the missing runs.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    finished = population.optuna_trials(used(network, space), result)
    try:
        options = {"connect_args": {"timeout": PATIENCE}}
        storage = optuna.storages.RDBStorage(study_url(directory), engine_kwargs=options)
        study = optuna.create_study(storage=storage, study_name=network, load_if_exists=True)
        study.add_trials(finished[len(study.get_trials(deepcopy=False)) :])
    except Exception as error:  # SQLAlchemy and Alembic raise many kinds
        errors.warn(f"{directory / STUDIES} could not be updated: {files.first_line(error)}")


def study_url(directory: Path) -> str:
    """The URL of a workdir's studies for Optuna and optuna-dashboard, with special characters of the path escaped."""
    from sqlalchemy.engine import URL

    url = URL.create("sqlite", database=str(directory / STUDIES)).render_as_string()
    return url.replace("{", "{{").replace("}", "}}")  # Optuna applies str.format to it

"""Guided search in a workdir: `population.tpe`, and a study for optuna-dashboard (extra `optuna`).

The study is a result like the workdir's other files and no state: it is told what ended, and never asked.
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

Space = Mapping[str, Any]  # of distributions, for `population.fit`
STUDIES = "optuna.db"  # in the workdir; a study for every kind of network
PATIENCE = 1  # seconds until a study that another program has locked is left as it is


def sampler(space: Space, directory: Path, network: str) -> population.Sampler:
    """Guided search for a kind of network; tells the workdir's study what ended."""
    choose = population.tpe(used(network, space))

    def sample(runs: np.ndarray, result: Result) -> Mapping[str, Any]:
        if runs[0] > result.runs[0] and jax.process_index() == 0:
            store(directory, space, network, result)
        return choose(runs, result)

    return sample


def store_results(directory: Path, space: Space, results: Mapping[str, Result]) -> None:
    """Tell the study in a workdir, finished or not, all that came out, by kind of network.

    Raises:
      UserError: if the workdir holds a link.
    """
    refuse_links(directory)  # nobody has, where it was finished before
    for network, result in results.items():
        store(directory, space, network, result)


def store(directory: Path, space: Space, network: str, result: Result) -> None:
    """Add to a network's study in the workdir the runs that it does not have yet.

    A study that cannot be read or written is warned of, since it is told all the next time.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    finished = population.optuna_trials(used(network, space), result)
    try:
        options = {"connect_args": {"timeout": PATIENCE}}
        storage = optuna.storages.RDBStorage(study_url(directory), engine_kwargs=options)
        study = optuna.create_study(storage=storage, study_name=network, load_if_exists=True)
        study.add_trials(finished[len(study.get_trials(deepcopy=False)) :])
    except Exception as error:  # SQLAlchemy and Alembic have many
        errors.warn(f"{directory / STUDIES} is left as it is: {files.first_line(error)}")


def study_url(directory: Path) -> str:
    """The URL of a workdir's study, for Optuna and optuna-dashboard, whatever characters the path has."""
    from sqlalchemy.engine import URL

    url = URL.create("sqlite", database=str(directory / STUDIES)).render_as_string()
    return url.replace("{", "{{").replace("}", "}}")  # Optuna formats it

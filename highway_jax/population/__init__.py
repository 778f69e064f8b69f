"""Train many runs at once: a task, mapped over a space."""

from highway_jax.population import schedules
from highway_jax.population.fit import fit, replay
from highway_jax.population.policies import Halving
from highway_jax.population.progress import Progress
from highway_jax.population.ranking import Ranking, rank
from highway_jax.population.result import Result, Trained
from highway_jax.population.space import choice, log_uniform, uniform
from highway_jax.population.storage import WorkdirError
from highway_jax.population.task import Task, TrainState, supervised

__all__ = [
    "Halving",
    "Progress",
    "Ranking",
    "Result",
    "Task",
    "TrainState",
    "Trained",
    "WorkdirError",
    "choice",
    "fit",
    "log_uniform",
    "rank",
    "replay",
    "schedules",
    "supervised",
    "uniform",
]

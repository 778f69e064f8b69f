"""Train many runs at once: a task mapped over a space of hyperparameters."""

from highway_jax.functional.classification import accuracy, cross_entropy
from highway_jax.population import schedules
from highway_jax.population.devices import DEVICES, Device
from highway_jax.population.fit import fit, replay
from highway_jax.population.guided import optuna_trials, tpe
from highway_jax.population.memory import MemoryTooSmall, RunTooLarge
from highway_jax.population.planning import Plan, plan
from highway_jax.population.policies import Halving
from highway_jax.population.progress import Bar, Progress
from highway_jax.population.ranking import Ranking, rank
from highway_jax.population.result import Result, Trained
from highway_jax.population.search import Sampler, Search, keys
from highway_jax.population.space import Space, choice, grid, log_uniform, uniform
from highway_jax.population.storage import WorkdirError, WorkdirWarning, writing
from highway_jax.population.tables import load, save
from highway_jax.population.task import Task, TrainState, supervised

__all__ = [
    "DEVICES",
    "Bar",
    "Device",
    "Halving",
    "MemoryTooSmall",
    "Plan",
    "Progress",
    "Ranking",
    "Result",
    "RunTooLarge",
    "Sampler",
    "Search",
    "Space",
    "Task",
    "TrainState",
    "Trained",
    "WorkdirError",
    "WorkdirWarning",
    "accuracy",
    "choice",
    "cross_entropy",
    "fit",
    "grid",
    "keys",
    "load",
    "log_uniform",
    "optuna_trials",
    "plan",
    "rank",
    "replay",
    "save",
    "schedules",
    "supervised",
    "tpe",
    "uniform",
    "writing",
]

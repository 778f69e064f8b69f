"""A job: the work that a config describes, as arguments of `population.fit`."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.app.errors import UserError
from experiments.workdir.identity import Identity
from highway_jax import data, parallel, population
from highway_jax.data import Split
from highway_jax.population import Halving, Task

EVALUATED = 1000  # examples in a batch of an evaluation


@dataclasses.dataclass(frozen=True)
class Job:
    """Work for `population.fit`: a population for each kind of network.

    Attributes:
      config: the program's config, checked.
      networks: the kinds of network, trained one after another.
      task: returns the task of a kind of network, by the kind's name.
      space: the space of the runs' hyperparameters.
      train: the training examples.
      evaluate: further examples that runs are evaluated on, by name.
      title: the work in a few words.
      implementations: what computes the layers of each kind of network, as in `MLP`; "xla" for those left out.
      halving: the policy that stops runs early, if any.
      sampler: returns the sampler of a kind of network by the kind's name, for guided search.
      keep_params: whether the parameters of every run after its last epoch are kept.
      rank_by: the metric that is reported as the training loss.
      inputs: further trees of arrays that the training depends on, by name, such as a teacher's parameters.
    """

    config: ConfigDict
    networks: tuple[str, ...]
    task: Callable[[str], Task]
    space: Mapping[str, Any]
    train: Split
    evaluate: Mapping[str, Split]
    title: str
    implementations: Mapping[str, str] = dataclasses.field(default_factory=dict)
    halving: Halving | None = None
    sampler: Callable[[str], population.Sampler] | None = None
    keep_params: bool = False
    rank_by: str = "train_loss"
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def identity(self) -> Identity:
        """What decides the job's results."""
        md5 = {name: data.md5(split) for name, split in {"train": self.train, **self.evaluate}.items()}
        for name, tree in self.inputs.items():
            digest = hashlib.md5(usedforsecurity=False)
            for leaf in jax.tree.leaves(tree):
                digest.update(np.ascontiguousarray(leaf).data)
            md5[name] = digest.hexdigest()
        return Identity(self.config, md5, self.implementations)

    def arguments(self, network: str) -> dict[str, Any]:
        """The arguments of `fit` that decide the results of a kind of network."""
        config = self.config
        return {
            "task": self.task(network),
            "space": self.space,
            "train": self.train,
            "evaluate": self.evaluate,
            "num_runs": config.num_runs,
            "first_run": config.first_run,
            "epochs": config.epochs,
            "batch_size": config.batch_size,
            "seed": config.seed,
            "rank_by": self.rank_by,
            "mode": "min",
            "policy": self.halving,
            "sampler": self.sampler and self.sampler(network),
            "evaluate_every": config.evaluate_every,
            "evaluate_batch_size": EVALUATED,
            "keep": "all" if self.keep_params else "best",
        }


def find_devices(config: ConfigDict) -> Mesh:
    """The devices to train on: those of `config.mesh`, or the default mesh."""
    if config.mesh is None:
        return parallel.choose_mesh(config.num_runs, config.batch_size)
    try:
        return parallel.mesh_of(config.mesh, jax.devices())
    except ValueError as error:
        raise UserError(f"config.{error}") from error


def too_many(config: ConfigDict, reason: str) -> UserError:
    """The error for more runs and epochs than the host's memory can hold, whatever the network."""
    return UserError(
        f"config.num_runs is {config.num_runs} and config.epochs is {config.epochs}; this machine's memory is too "
        f"small for so many curves: {reason}"
    )


def too_large(config: ConfigDict, reason: population.RunTooLarge) -> UserError:
    """The error for a network that fits on no device."""
    if "stages" in config:
        return UserError(f"config.stages describes a network that is too large: {reason}")
    widest = max(config.width[network] for network in config.networks)
    return UserError(f"config.depth is {config.depth} and config.width {widest}: {reason}")

"""What a program wants done."""

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

EVALUATED = 1000  # examples at a time


@dataclasses.dataclass(frozen=True)
class Job:
    """Work for `population.fit`: for each kind of network a population.

    Attributes:
      config: the program's config, checked.
      networks: the kinds of network, trained one after another.
      task: what the runs of a kind of network do, by the kind's name.
      space: where their hyperparameters are from.
      train: what they train on.
      evaluate: what else they are measured on, by name.
      title: all of it in a few words.
      implementations: of the layers of each kind of network, as `MLP` has it; those left out are XLA's.
      halving: how runs are stopped early, if they are.
      sampler: who chooses a kind's hyperparameters instead, by the kind's name.
      keep_params: whether every run's parameters after its last epoch are a result.
      rank_by: the number that is reported as the training loss.
      inputs: further trees of arrays that the training depends on, such as a teacher's parameters, by name.
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
        """What decides its numbers."""
        md5 = {name: data.md5(split) for name, split in {"train": self.train, **self.evaluate}.items()}
        for name, tree in self.inputs.items():
            digest = hashlib.md5(usedforsecurity=False)
            for leaf in jax.tree.leaves(tree):
                digest.update(np.ascontiguousarray(leaf).data)
            md5[name] = digest.hexdigest()
        return Identity(self.config, md5, self.implementations)

    def arguments(self, network: str) -> dict[str, Any]:
        """`fit`'s, as far as they decide the numbers of a kind of network."""
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
    """The devices to train on, as `config.mesh` says or by default."""
    if config.mesh is None:
        return parallel.choose_mesh(config.num_runs, config.batch_size)
    try:
        return parallel.mesh_of(config.mesh, jax.devices())
    except ValueError as error:
        raise UserError(f"config.{error}") from error


def too_many(config: ConfigDict, reason: str) -> UserError:
    """What is said of more runs and epochs than a computer's memory has room for, whatever the network."""
    return UserError(
        f"config.num_runs is {config.num_runs} and config.epochs is {config.epochs}; this machine's memory is too "
        f"small for so many curves: {reason}"
    )


def too_large(config: ConfigDict, reason: population.RunTooLarge) -> UserError:
    """What is said of a network that no device has room for."""
    if "stages" in config:
        return UserError(f"config.stages is too large a network: {reason}")
    widest = max(config.width[network] for network in config.networks)
    return UserError(f"config.depth is {config.depth} and config.width {widest}: {reason}")

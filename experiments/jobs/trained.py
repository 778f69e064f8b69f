"""A trained network of a workdir, with what it takes to look inside."""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.app.errors import UserError
from experiments.configs.figure1 import WIDTHS
from experiments.jobs import networks
from experiments.workdir import reading
from experiments.workdir.contents import Workdir, choose
from highway_jax import data


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network.

    Attributes:
      kind, run, rank: which of its workdir it is.
      hyperparameters: the run's.
      epoch: epochs it was trained for when it had these parameters.
      file: the checkpoint of the parameters.
    """

    kind: str
    run: int
    rank: int
    hyperparameters: dict[str, Any]
    epoch: int
    file: Path


def choose_network(found: Workdir, kind: str, run: int | None, rank: int | None) -> Network:
    """The network with gates that is meant, the best one by default.

    Raises:
      UserError: if it is not in the workdir, has no gates, or its parameters are not kept.
    """
    if kind != "highway" and kind in WIDTHS:
        raise UserError(f"--network is {kind!r}, which has no transform gates to look at; it must be 'highway'")
    if "highway" not in found.kinds:
        raise UserError(f"{found.directory} holds no highway networks, and no others have transform gates to look at")
    if kind in found.kinds and kind not in found.results:
        raise UserError(
            f"{found.directory} holds no {kind} run yet; the same command as before goes on with its search"
        )
    kind, run = choose(found, kind, run, 1 if rank is None and run is None else rank)
    result = found.results[kind]
    ranking, index = result.ranking, result.index(run)
    rank = int(ranking.ranks[index])
    file = found.directory / (f"best/{kind}" if rank == 1 else f"params/{kind}/run{run}")
    if not np.isfinite(ranking.best[index]):
        raise UserError(
            f"{kind} run {run} of {found.directory} never had a finite loss, so there is nothing to look at"
        )
    if not file.is_dir():
        command = f"python -m experiments.train --from_search={found.directory} --network={kind} --run={run}"
        raise UserError(
            f"{file} is missing; the workdir holds no parameters"
            if rank == 1
            else f"{found.directory} holds its best run's parameters alone; for run {run}, first train it: {command}"
        )
    epoch = ranking.best_epoch[index] if rank == 1 else ranking.epochs[index]
    return Network(kind, run, rank, result.hyperparameters_of(index), int(epoch), file)


def read_network(
    found: Workdir, network: Network, config: ConfigDict, dataset: data.Dataset
) -> tuple[nn.Module, Any, networks.Preprocess]:
    """The network's model, its parameters, and what turns images into its input.

    Raises:
      UserError: if the parameters are damaged, of another model, or not finite.
    """
    params = reading.read_params(found, network.file)
    preprocess = networks.preprocessing(config, dataset.max_value, dataset.train["x"])
    model = networks.network(config, dataset, network.kind)(network.hyperparameters)
    reading.check_params(network.file, params, model, preprocess(dataset.train["x"][:1]))
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
        raise UserError(
            f"{network.file} holds parameters that are not finite: {network.kind} run {network.run} diverged"
        )
    return model, params, preprocess

"""Read a trained network from a workdir, for analysis."""

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
    """A trained network of a workdir.

    Attributes:
      kind: the kind of network.
      run: the number of its run.
      rank: the rank of its run.
      hyperparameters: the run's hyperparameters.
      epoch: the epoch after which the network had these parameters.
      file: the checkpoint of the parameters.
    """

    kind: str
    run: int
    rank: int
    hyperparameters: dict[str, Any]
    epoch: int
    file: Path


def choose_network(found: Workdir, kind: str, run: int | None, rank: int | None) -> Network:
    """Choose a network with gates, by default the best one.

    Raises:
      UserError: if the network is not in the workdir, has no gates, or its parameters were not kept.
    """
    if kind != "highway" and kind in WIDTHS:
        raise UserError(f"--network is {kind!r}, which has no transform gates; it must be 'highway'")
    if "highway" not in found.kinds:
        raise UserError(f"{found.directory} holds no highway networks, the only ones with transform gates")
    if kind in found.kinds and kind not in found.results:
        raise UserError(f"{found.directory} holds no {kind} run yet; the command that started its search resumes it")
    kind, run = choose(found, kind, run, 1 if rank is None and run is None else rank)
    result = found.results[kind]
    ranking, index = result.ranking, result.index(run)
    rank = int(ranking.ranks[index])
    file = found.directory / (f"best/{kind}" if rank == 1 else f"params/{kind}/run{run}")
    if not np.isfinite(ranking.best[index]):
        raise UserError(f"{kind} run {run} of {found.directory} never had a finite loss; there is nothing to analyze")
    if not file.is_dir():
        command = f"python -m experiments.train --from_search={found.directory} --network={kind} --run={run}"
        raise UserError(
            f"{file} is missing; the workdir holds no parameters"
            if rank == 1
            else f"{found.directory} holds only the best run's parameters; train run {run} first: {command}"
        )
    epoch = ranking.best_epoch[index] if rank == 1 else ranking.epochs[index]
    return Network(kind, run, rank, result.hyperparameters_of(index), int(epoch), file)


def read_network(
    found: Workdir, network: Network, config: ConfigDict, dataset: data.Dataset
) -> tuple[nn.Module, Any, networks.Preprocess]:
    """The network's model, its parameters, and the function that turns images into its inputs.

    Raises:
      UserError: if the parameters are damaged, do not fit the model, or are not finite.
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

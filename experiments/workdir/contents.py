"""The contents of a workdir as a value."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.app.errors import UserError
from highway_jax.population import Result
from highway_jax.stack.kinds import KINDS


@dataclass(frozen=True)
class Workdir:
    """The contents of a workdir.

    Attributes:
      directory: the workdir.
      config: the config; keys that decide no result have their defaults. For a search by `population.fit`, the facts
        in `search.json`.
      kinds: the kinds of network that are trained; ("runs",) for a search by `population.fit`.
      depth: the number of layers as the paper counts them; 0 if unknown.
      results: the results of each kind that has any, in the order of `kinds`. The loss is `train_loss`. The transform
        bias of networks without gates is NaN.
      provenance: commit, versions, hardware and, once the work is finished, seconds.
      finished: whether the work is finished.
    """

    directory: Path
    config: ConfigDict
    kinds: tuple[str, ...]
    depth: int
    results: dict[str, Result]
    provenance: dict[str, Any]
    finished: bool

    @property
    def program(self) -> str:
        """The program that made the workdir: "search", "train", or "" for `population.fit`."""
        return "search" if "search" in self.config else "train" if "stages" in self.config else ""


def used(network: str, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters that a kind of network uses; a transform bias is drawn for networks without gates, too."""
    gated = KINDS[network].gated
    return {name: value for name, value in hyperparameters.items() if gated or name != "transform_bias"}


def choose(found: Workdir, network: str | None, run: int | None, rank: int | None) -> tuple[str, int]:
    """Resolve the flags --network, --run and --rank to a kind of network and a run number.

    Raises:
      UserError: if the flags are ambiguous, or name a run that is not in the workdir.
    """
    networks = list(found.results)
    if network is None and len(networks) == 1:
        (network,) = networks
    if network is None:
        raise UserError(f"--network is missing; it must be one of {', '.join(networks)}")
    if network not in networks:
        raise UserError(f"--network is {network!r}; it must be one of {', '.join(networks)}")
    result = found.results[network]
    if (run is None) == (rank is None):
        raise UserError("either --run=N or --rank=N must be given, not both")
    if rank is not None:
        if not 1 <= rank <= result.num_runs:
            raise UserError(f"--rank is {rank}; it must be 1 to {result.num_runs}")
        return network, int(result.runs[result.ranking.order[rank - 1]])
    if run is None or run not in result.runs:
        raise UserError(f"--run is {run}; it must be {result.runs[0]} to {result.runs[-1]}")
    return network, run

"""What a workdir holds, as a value."""

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
    """What a workdir holds.

    Attributes:
      directory: where it is.
      config: of the work; keys that decide no result have their defaults. Of a search by `population.fit`, what
        `search.json` says.
      kinds: the kinds of network that are trained; of a search by `population.fit`, "runs".
      depth: their layers, as the paper counts them; 0 where nothing says.
      results: what came out of every kind that has results, in that order. The loss is `train_loss`; a network without
        gates has a transform bias of NaN.
      provenance: commit, versions, hardware, and seconds once it is finished.
      finished: whether all is done.
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
        """The program whose it is: "search", "train", or "" for a search by `population.fit`."""
        return "search" if "search" in self.config else "train" if "stages" in self.config else ""


def used(network: str, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters that a kind of network has: one without gates has no transform bias, though it is drawn."""
    gated = KINDS[network].gated
    return {name: value for name, value in hyperparameters.items() if gated or name != "transform_bias"}


def choose(found: Workdir, network: str | None, run: int | None, rank: int | None) -> tuple[str, int]:
    """The kind of network and the run that are meant.

    Raises:
      UserError: if that is not clear, or not in the workdir.
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
        raise UserError("one of --run=N and --rank=N must be given, and not both")
    if rank is not None:
        if not 1 <= rank <= result.num_runs:
            raise UserError(f"--rank is {rank}; it must be 1 to {result.num_runs}")
        return network, int(result.runs[result.ranking.order[rank - 1]])
    if run is None or run not in result.runs:
        raise UserError(f"--run is {run}; it must be {result.runs[0]} to {result.runs[-1]}")
    return network, run

"""Write results to a workdir: tables, parameters, and the checksums that mark it as finished."""

import importlib.util
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from experiments.app.errors import UserError
from experiments.workdir import files
from experiments.workdir.files import CHECKPOINTS, RESULTS, write_json
from experiments.workdir.summary import summarize
from highway_jax import checkpoint
from highway_jax.files import first_line, replacing
from highway_jax.population import Result, tables
from highway_jax.stack.kinds import KINDS

if TYPE_CHECKING:
    import pandas

ACCURACIES = ("test_accuracy", "validation_accuracy")  # columns of tables
Results = Mapping[str, Result]  # by the kind of network


def runs_table(network: str, result: Result) -> "pandas.DataFrame":
    """The rows of `runs.csv` for one kind of network: the runs that have begun."""
    import pandas

    ranking = result.ranking
    drawn = dict(result.hyperparameters)
    if not KINDS[network].gated:
        drawn["transform_bias"] = np.full(result.num_runs, np.nan, np.float32)
    return pandas.DataFrame(
        {
            "network": network,
            "run": result.runs,
            "rank": ranking.ranks,
            **drawn,
            "best_loss": ranking.best,
            "best_epoch": ranking.best_epoch,
            "final_loss": ranking.final,
            "diverged": ranking.diverged,
            "epochs": ranking.epochs,
            **{name: result.last(name) for name in ACCURACIES if name in result.curves},
        }
    )[ranking.epochs > 0]


def curves_table(network: str, result: Result, accuracies: bool) -> "pandas.DataFrame":
    """The rows of `curves.csv` for one kind of network, with accuracies if `accuracies`."""
    table = result.curves_table()
    table.insert(0, "network", network)
    kept = [name for name in ACCURACIES if accuracies and name in table]
    return table[["network", "run", "epoch", result.rank_by, *kept]].rename(columns={result.rank_by: "train_loss"})


def write_tables(directory: Path, results: Results, network: str, accuracies: bool) -> None:
    """Write `runs.csv` and `curves.csv`, also as Parquet if pyarrow is installed.

    float32 values are written so that they can be read back exactly. The network's earlier parameters are removed
    first, so that a workdir never holds tables and parameters of different epochs.

    Args:
      directory: the workdir.
      results: the results so far, by kind of network.
      network: the kind that is being trained.
      accuracies: whether the curves include accuracies.
    """
    import pandas

    for parent in "best", "params":
        shutil.rmtree(directory / parent / network, ignore_errors=True)
    for name, parts in {
        "runs": [runs_table(*item) for item in results.items()],
        "curves": [curves_table(*item, accuracies) for item in results.items()],
    }.items():
        table = shown = pandas.concat(parts)
        if name == "runs":  # empty where a network has no gates; "nan" means not measured
            bias = table["transform_bias"].to_numpy()
            shown = table.assign(transform_bias=np.where(np.isnan(bias), "", bias.astype(str)))
        tables.write_table(directory / f"{name}.csv", shown, missing="nan")
        (directory / f"{name}.parquet").unlink(missing_ok=True)
        if importlib.util.find_spec("pyarrow"):
            with replacing(directory / f"{name}.parquet") as file:
                table.to_parquet(file, index=False)


def write_params(directory: Path, network: str, result: Result) -> None:
    """Write the best parameters to `best/NETWORK` and, if kept, every run's final ones to `params/NETWORK/runN`."""
    for name, params in _params(network, result):
        checkpoint.save_params(directory / name, params)


def _params(network: str, result: Result) -> Iterator[tuple[str, Any]]:
    """The names of directories in the workdir, and the parameters that belong there."""
    assert result.work is not None
    yield f"best/{network}", next(iter(result.work.outcome.best.values())).params  # exists even if all runs diverged
    if result.work.search.keep == "all":
        for run in result.runs[result.ranking.epochs > 0].tolist():
            yield f"params/{network}/run{run}", result.run(run).params


def finish(directory: Path, results: Results) -> None:
    """Write the summary and the seconds, mark the workdir as finished, and remove the checkpoints.

    Raises:
      UserError: if parameters cannot be read back exactly.
    """
    for network, result in results.items():
        _check_params(directory, network, result)
    seconds = {network: round(result.seconds, 1) for network, result in results.items()}
    write_json(directory / "provenance.json", {**files.read_provenance(directory), "seconds": seconds})
    write_json(directory / "summary.json", {network: summarize(result) for network, result in results.items()})
    params = (file for folder in ("best", "params") for file in checkpoint.files_in(directory / folder))
    checkpoint.write_sums(directory, [*(directory / name for name in RESULTS), *params])
    shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)


def _check_params(directory: Path, network: str, result: Result) -> None:
    """Refuse to finish a workdir whose parameters cannot be read back exactly."""
    for name, params in _params(network, result):
        try:
            there = checkpoint.restore_params(directory / name)
            same = all(jax.tree.leaves(jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), there, params)))
        except Exception as error:  # Orbax and TensorStore raise many kinds
            raise UserError(f"{directory / name} cannot be read back: {first_line(error)}") from error
        if not same:
            raise UserError(f"{directory / name} does not hold the parameters that were written to it")

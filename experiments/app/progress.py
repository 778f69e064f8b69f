"""What a program shows when it is done."""

from collections.abc import Callable, Mapping

import numpy as np
from rich.table import Table

from experiments.app.output import Output
from highway_jax.population import Result


def print_summary(results: Mapping[str, Result], console: Output) -> None:
    """Print what came out as a table, a column per network."""
    table = Table(title="lowest mean training loss of an epoch (nats)", title_justify="left")
    table.add_column("")
    for network in results:
        table.add_column(network, justify="right")
    top = min(10, *(result.num_runs for result in results.values()))
    rows: dict[str, Callable[[Result], str]] = {
        "best run": lambda r: _number(r.ranking.best[r.ranking.order[0]], ".2e"),
        f"mean of the best {top}": lambda r: _number(r.ranking.mean_of_best(10), ".2e"),
        "median": lambda r: _number(r.ranking.median(), ".2e"),
        "diverged runs": lambda r: f"{r.ranking.diverged.sum()} of {r.num_runs}",
        "best run's test accuracy": lambda r: _number(r.last("test_accuracy")[r.ranking.order[0]], ".2%"),
    }
    for label, cell in rows.items():
        table.add_row(label, *map(cell, results.values()))
    console.print(table)
    if any(np.isinf(result.ranking.mean_of_best(10)) for result in results.values()):
        console.print(f"-: fewer than {top} runs ever had a finite loss")


def _number(value: float, form: str) -> str:
    return format(value, form) if np.isfinite(value) else "-"

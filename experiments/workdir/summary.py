"""Summarize results in a few numbers, for `summary.json` and for the table that a program prints at its end."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from rich.table import Table

from experiments.app.output import Output
from highway_jax.population import Result


def summarize(result: Result) -> dict[str, Any]:
    """The entry of one network in `summary.json`; None stands for numbers that are not finite."""
    ranking = result.ranking
    best = int(ranking.order[0])
    summary = {
        "best_loss": float(ranking.best[best]),
        "best_run": int(result.runs[best]),
        "top10_mean_loss": ranking.mean_of_best(10),
        "median_loss": ranking.median(),
        "diverged": int(ranking.diverged.sum()),
        "num_runs": result.num_runs,
        "best_run_test_accuracy": float(result.last("test_accuracy")[best]),
        "seconds": round(result.seconds, 1),
    }
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in summary.items()}


def print_summary(results: Mapping[str, Result], console: Output) -> None:
    """Print a table of results with a column per network."""
    summaries = [summarize(result) for result in results.values()]
    top = min(10, *(summary["num_runs"] for summary in summaries))
    table = Table(title="lowest mean training loss of an epoch (nats)", title_justify="left")
    table.add_column("")
    for network in results:
        table.add_column(network, justify="right")
    rows: dict[str, Callable[[dict[str, Any]], str]] = {
        "best run": lambda s: _number(s["best_loss"], ".2e"),
        f"mean of the best {top}": lambda s: _number(s["top10_mean_loss"], ".2e"),
        "median": lambda s: _number(s["median_loss"], ".2e"),
        "diverged runs": lambda s: f"{s['diverged']} of {s['num_runs']}",
        "best run's test accuracy": lambda s: _number(s["best_run_test_accuracy"], ".2%"),
    }
    for label, cell in rows.items():
        table.add_row(label, *map(cell, summaries))
    console.print(table)
    if any(summary["top10_mean_loss"] is None for summary in summaries):
        console.print(f"-: fewer than {top} runs ever had a finite loss")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)

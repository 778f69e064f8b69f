"""What a search shows while it runs and when it is done."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from experiments.cli import ignore_output, say


class Output(Console):
    """The terminal, or wherever else output goes; paths and names are printed as they are.

    That nobody reads on (`| head`) is no reason to stop working.
    """

    def __init__(self) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, soft_wrap=True)

    def on_broken_pipe(self) -> None:
        """Print to nowhere from now on."""
        ignore_output()


Report = Callable[[str, int, float, int], None]


@contextmanager
def progress(networks: tuple[str, ...], epochs: int, console: Output) -> Iterator[Report]:
    """Show progress: a live bar per network on a terminal, a few plain lines elsewhere.

    Yields `report(network, epoch, best_loss, diverged)`, to be called after every epoch.
    """
    if console.is_terminal:
        columns = (
            TextColumn("{task.description:8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
        )
        with Progress(*columns, console=console) as bars:
            tasks = {network: bars.add_task(network, total=epochs, status="") for network in networks}

            def move(network: str, epoch: int, best_loss: float, diverged: int) -> None:
                status = f"best loss {best_loss:.2e}, {diverged} diverged"
                bars.update(tasks[network], completed=epoch, status=status)

            yield move
        return
    every = max(1, epochs // 10)

    def line(network: str, epoch: int, best_loss: float, diverged: int) -> None:
        if epoch % every == 0 or epoch in (1, epochs):
            say(f"{network}: epoch {epoch}/{epochs}, best loss {best_loss:.2e}, {diverged} diverged")

    yield line


def print_summary(summary: Mapping[str, Mapping[str, Any]], console: Output) -> None:
    """Print `summary.json` as a table, a column per network."""
    table = Table(title="lowest mean training loss of an epoch (nats)", title_justify="left")
    table.add_column("")
    for network in summary:
        table.add_column(network, justify="right")
    top = min(10, *(s["num_runs"] for s in summary.values()))
    rows: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "best run": lambda s: _number(s["best_loss"], ".2e"),
        f"mean of the best {top}": lambda s: _number(s["top10_mean_loss"], ".2e"),
        "median": lambda s: _number(s["median_loss"], ".2e"),
        "diverged runs": lambda s: f"{s['diverged']} of {s['num_runs']}",
        "best run's test accuracy": lambda s: _number(s["best_run_test_accuracy"], ".2%"),
    }
    for label, cell in rows.items():
        table.add_row(label, *map(cell, summary.values()))
    console.print(table)
    if any(s["top10_mean_loss"] is None for s in summary.values()):
        console.print(f"-: fewer than {top} runs ever had a finite loss")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)

"""Keep a workdir's results, finished or not, in a form fit for a repository."""

import json
import shutil
from pathlib import Path
from typing import Any

from experiments.app.output import say
from experiments.workdir import reading
from experiments.workdir.files import RESULTS, read_json, write_text


def keep(directory: Path, destination: Path) -> bool:
    """Put a workdir's results in the place of earlier ones, unless those are of more work; returns whether it did."""
    before, now = map(_progress, (destination, directory))
    if now < before:
        say(f"{destination} stays as it is: it is of {before[1]:,} runs' epochs, {directory} of {now[1]:,}")
        return False
    fresh = destination.with_name(f".{destination.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    collect(directory, fresh)
    shutil.rmtree(destination, ignore_errors=True)
    fresh.rename(destination)
    return True


def _progress(directory: Path) -> tuple[bool, int, bool]:
    """Whether results are finished, how many epochs their runs have had, and whether they were looked into."""
    if not (directory / "runs.csv").exists():
        return False, 0, False
    found = reading.load(directory)
    epochs = sum(int(result.ranking.epochs.sum()) for result in found.results.values())
    return found.finished, epochs, (directory / "analysis.json").exists()


def collect(directory: Path, destination: Path) -> None:
    """Copy a workdir's results and figures; an analysis without what follows from the rest, to four digits."""
    destination.mkdir(parents=True)
    figures = [path.name for path in directory.glob("*.png") if not path.name.startswith("report_")]
    for name in (*RESULTS, *figures):
        if (directory / name).exists():
            shutil.copyfile(directory / name, destination / name)
    if (directory / "analysis.json").exists():
        found = read_json(directory / "analysis.json")
        del found["gates"]["class_mean"]  # the routing and the mean
        write_text(destination / "analysis.json", json.dumps(_rounded(found)) + "\n")


def _rounded(value: Any) -> Any:
    """JSON with four significant digits."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value

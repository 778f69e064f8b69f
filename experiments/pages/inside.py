"""What `experiments.analyze` leaves in a workdir: figures, their captions, and every number behind them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from experiments.app.errors import UserError
from experiments.jobs.trained import Network
from experiments.pages.figures import png
from experiments.pages.templates import template
from experiments.workdir.files import damaged, read_json, write_text
from highway_jax import data
from highway_jax.analysis import Analysis, Dropped, GateStatistics, InnerStates, Lesions, plots, summarize
from highway_jax.analysis.plots import percent
from highway_jax.analysis.summary import OPEN, TOLERATED
from highway_jax.files import write_whole

SAMPLE = 0  # the index of the training image whose gates and block outputs are shown
MOST = 10**8  # samples
BINS = 60  # of the histogram of open layers


def write(directory: Path, dataset: data.Dataset, network: Network, found: Analysis, title: str) -> None:
    """Write the figures and `analysis.json` to a workdir."""
    hp = network.hyperparameters
    _draw(directory, found, hp["transform_bias"], title)
    counts, edges = np.histogram(found.gates.open_layers, BINS)
    numbers = {
        "dataset": dataset.name,
        "title": title,
        "split": "train",
        "images": len(dataset.train["y"]),
        "network": network.kind,
        "run": network.run,
        "rank": network.rank,
        "epoch": network.epoch,
        "parameters": network.file.relative_to(directory).as_posix(),
        "hyperparameters": hp,
        "summary": summarize(found, hp["transform_bias"]),
        "captions": {},  # of all the rest, below
        "gates": {**found.gates._asdict(), "open_layers": {"counts": counts, "edges": edges}},
        "routing": found.gates.routing,
        "sample": {"index": SAMPLE, "label": int(dataset.train["y"][SAMPLE]), **found.sample._asdict()},
        "lesions": {**found.lesions._asdict(), "damage": found.lesions.damage},
        "dropped": found.dropped._asdict(),
    }
    numbers["captions"] = _captions(numbers, found)
    write_text(directory / "analysis.json", json.dumps(_json(numbers), allow_nan=False) + "\n")


def redraw(directory: Path, title: str | None) -> None:
    """Draw the figures again, and write their captions again, from a workdir's `analysis.json` alone.

    Raises:
      UserError: if there is none, or it is damaged.
    """
    path = directory / "analysis.json"
    if not path.exists():
        raise UserError(f"{path} is missing; experiments.analyze without --redraw writes it")
    numbers = read_json(path)
    try:
        found = _read(numbers)
        numbers["title"] = title or numbers.get("title", numbers["dataset"])
        summary = {name: np.nan if value is None else value for name, value in numbers["summary"].items()}
        numbers["captions"] = _captions({**numbers, "summary": summary}, found)
        _draw(directory, found, numbers["hyperparameters"]["transform_bias"], numbers["title"])
    except (AttributeError, KeyError, TypeError, ValueError, jinja2.TemplateError) as error:
        raise damaged(path, "experiments.analyze without --redraw writes it again") from error
    write_text(path, json.dumps(numbers, allow_nan=False) + "\n")


def _read(numbers: Mapping[str, Any]) -> Analysis:
    """What `analysis.json` was written of; samples are spread evenly over each bin of the histogram."""

    def arrays(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: np.array(value, float) for name, value in values.items()}

    gates, histogram = numbers["gates"], arrays(numbers["gates"]["open_layers"])
    routing, mean = np.array(numbers["routing"], float), np.array(gates["mean"], float)
    if not 0 <= histogram["counts"].sum() <= MOST:
        raise ValueError("no dataset has so many samples")
    bins = zip(histogram["counts"].astype(int), histogram["edges"][:-1], histogram["edges"][1:], strict=True)
    open_layers = np.concatenate([low + (high - low) * (np.arange(n) + 0.5) / n for n, low, high in bins if n])
    unknown = np.full_like(mean, np.nan)  # an analysis of an earlier version lacks some numbers, which no figure shows
    return Analysis(
        gates=GateStatistics(
            bias=np.array(gates["bias"], float),
            mean=mean,
            open_fraction=np.array(gates.get("open_fraction", unknown), float),
            class_mean=routing + mean,
            class_size=np.array(gates["class_size"]),
            open_layers=open_layers,
        ),
        sample=InnerStates(**arrays({name: numbers["sample"].get(name, unknown) for name in InnerStates._fields})),
        lesions=Lesions(**arrays({name: numbers["lesions"][name] for name in Lesions._fields})),
        dropped=Dropped(**arrays(numbers["dropped"])),
    )


def _draw(directory: Path, found: Analysis, initial_bias: float, title: str) -> None:
    gates, lesions = {title: found.gates}, {title: found.lesions}
    for name, figure in {
        "figure2.png": plots.figure2(gates, {title: found.sample}, {title: initial_bias}),
        "figure3.png": plots.figure3(gates),
        "figure4.png": plots.figure4(lesions),
        "depth_in_use.png": plots.depth_in_use(gates, lesions, {title: found.dropped}),
    }.items():
        write_whole(directory / name, png(figure))


def _captions(numbers: Mapping[str, Any], found: Analysis) -> dict[str, str]:
    """What is written below each figure, from `captions.jinja` and what `analysis.json` has."""
    faintest = f"{plots.faintest_gate(found.gates):g}"
    values = {"threshold": OPEN, "tolerated": TOLERATED, "faintest": faintest, **numbers}
    said = template(Path(__file__).with_name("captions.jinja"), short_percent=percent).make_module(values)
    names = ("figure2", "figure3", "figure4", "depth_in_use")
    return {f"{name}.png": str(getattr(said, name)).strip().replace("\n", " ") for name in names}


def _json(value: Any) -> Any:
    """As JSON has it: float32 in as few digits as give it back, null for what is not finite."""
    if isinstance(value, Mapping):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return [_json(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(str(value)) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value

"""How fast devices train, as measured in benchmarks/results."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np

from experiments.app.machine import hardware

RESULTS = Path(__file__).parents[2] / "benchmarks/results"


@dataclasses.dataclass(frozen=True)
class Rate:
    """The measured rate of a device in FLOP/s.

    Attributes:
      typical: at the depth asked for.
      low, high: the extremes over all depths and repetitions.
      runs: how many runs were side by side on a device, the fewest of all files.
      files: the files that the rate comes from.
    """

    typical: float
    low: float
    high: float
    runs: int
    files: tuple[str, ...]


def measured_rate(
    kind: str, depth: int, results: Path = RESULTS, contender: str = "ours", runs: int | None = None
) -> Rate | None:
    """The rate at which a kind of device trains fully connected networks, or None if it was not measured.

    Rates are interpolated between the measured depths, and constant beyond them. A CPU counts as measured if a CPU of
    the same name was.

    Args:
      kind: JAX's name of the kind of device.
      depth: the depth of the networks.
      results: the folder with the results of `benchmarks.population`.
      contender: the contender in these results: "ours" or "ours_xla".
      runs: how many runs a device will train side by side; None for as many as possible. At each depth, the
        measurement with the most runs up to this number counts or, if there is none, the one with the fewest runs.
    """
    points = []
    for path in sorted(results.glob("population_*.json")):
        result = json.loads(path.read_text())
        ours = result["contenders"].get(contender, {})
        count, _, measured = ours.get("device", "").partition(" x ")
        if measured == kind and (kind != "cpu" or result["machine"]["cpu"] == hardware()["cpu"]):
            work = 1e3 * result["flops_per_run_step"] / int(count)
            rates = (work / ours[key] for key in ("ms", "ms_max", "ms_min"))
            points.append((result["work"]["depth"], *rates, result["work"]["runs"] // int(count), path.name))
    if not points:
        return None
    chosen = []
    for measured_depth in {point[0] for point in points}:
        here = [point for point in points if point[0] == measured_depth]
        counts = {point[4] for point in here}
        count = max((count for count in counts if runs is None or count <= runs), default=min(counts))
        chosen += [point for point in here if point[4] == count]
    depths, typical, low, high, side_by_side, files = zip(*sorted(chosen), strict=True)
    rate = float(np.interp(math.log(depth), np.log(depths), typical))
    return Rate(rate, min(low), max(high), min(side_by_side), files)

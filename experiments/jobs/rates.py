"""How fast devices train: what was measured, in benchmarks/results."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np

from experiments.app.machine import hardware

RESULTS = Path(__file__).parents[2] / "benchmarks/results"


@dataclasses.dataclass(frozen=True)
class Rate:
    """What a device was measured to do, in FLOP/s; `typical` at the depth asked for, low and high at any.

    Attributes:
      runs: that were side by side on a device, the fewest of all files.
      files: where that is from.
    """

    typical: float
    low: float
    high: float
    runs: int
    files: tuple[str, ...]


def measured_rate(
    kind: str, depth: int, results: Path = RESULTS, contender: str = "ours", runs: int | None = None
) -> Rate | None:
    """The rate at which a kind of device trains fully connected networks, or None if nobody has measured it.

    Between the depths that were measured it is interpolated, beyond them it is the outermost's. A CPU counts as
    measured if one of its name was.

    Args:
      kind: of device, as JAX calls it.
      depth: of the networks.
      results: where the files of `benchmarks.population` are.
      contender: one of its contenders: "ours", or "ours_xla".
      runs: how many a device will train side by side; by default as many as can be. At every depth the measurement
        with the most runs not above it counts, otherwise that with the fewest.
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

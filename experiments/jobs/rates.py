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
      runs: that were side by side on a device.
      files: where that is from.
    """

    typical: float
    low: float
    high: float
    runs: int
    files: tuple[str, ...]


def measured_rate(kind: str, depth: int, results: Path = RESULTS, contender: str = "ours") -> Rate | None:
    """The rate at which a kind of device trains fully connected networks, or None if nobody has measured it.

    Between the depths that were measured it is interpolated, beyond them it is the outermost's. A CPU counts as
    measured if one of its name was. The contender is one of `benchmarks.population`: "ours", or "ours_xla".
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
    depths, typical, low, high, runs, files = zip(*sorted(points), strict=True)
    return Rate(float(np.interp(math.log(depth), np.log(depths), typical)), min(low), max(high), max(runs), files)

"""Measure how much faster an epoch of a search is with its runs split over all CPU devices than on one device.

    python -m benchmarks.scaling --config=digits_depth50

Takes a search's --config flags. Times an epoch of the first kind of network on one device and on one device per core,
interleaved; the median counts. Also counts the collective operations in an epoch.
Writes benchmarks/results/devices_PLATFORM_NAME.json.
"""

import json
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.app import command_line, entry, errors
from experiments.app.machine import hardware
from experiments.configs import loading
from experiments.jobs.making import job_of
from highway_jax import parallel, population
from highway_jax.population.programs import Group, gather_batches

REPETITIONS = 9


def main(argv: list[str]) -> None:
    """Time the epochs, print the speedup, and write the JSON file."""
    name, overrides, rest = command_line.split_config_flags(argv)
    if rest:
        raise errors.UserError(f"unexpected argument {rest[0]!r}")
    config = loading.load(name, overrides, "search").config
    counts = (1, len(jax.devices()))
    epochs = {count: epoch_on(config, count) for count in counts}
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(REPETITIONS):
        for count, (epoch, _) in epochs.items():
            started = time.perf_counter()
            epoch()
            seconds[count].append(time.perf_counter() - started)
    medians = {count: statistics.median(times) for count, times in seconds.items()}
    speedup = medians[counts[0]] / medians[counts[-1]]
    result = {
        "config": name,
        "num_runs": config.num_runs,
        "seconds_per_epoch": {str(count): times for count, times in seconds.items()},
        "median_seconds_per_epoch": {str(count): median for count, median in medians.items()},
        "collectives": {str(count): collectives for count, (_, collectives) in epochs.items()},
        "speedup": speedup,
        "hardware": hardware(),
    }
    print(f"{counts[-1]} devices instead of 1: {speedup:.2f} times as fast ({medians[1]:.3g} s an epoch on 1)")
    path = Path(__file__).parent / "results" / f"devices_{jax.default_backend()}_{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")


def epoch_on(config: ConfigDict, count: int) -> tuple[Callable[[], None], int]:
    """A compiled function that trains an epoch on `count` devices and waits, and the number of its collectives."""
    network = config.networks[0]
    mesh = parallel.runs_mesh(jax.devices()[:count])
    job = job_of(config)
    search = population.Search(**job.arguments(network) | {"space": population.Space(job.space)})
    group, train = Group(search, {}, mesh), parallel.replicate(mesh, search.train)
    members = group.start(search.drawn, np.arange(config.num_runs))
    text = group.programs.train.lower(members, group.batches, 1).compile().as_text()

    def epoch() -> None:
        nonlocal members
        batches = gather_batches(mesh, search.batch_size, train, search.epoch_key(0))
        members, metrics = group.train(members, batches, 1)
        jax.block_until_ready(metrics)

    epoch()
    names = "all-gather|all-reduce|all-to-all|collective-permute|collective-broadcast|reduce-scatter"
    return epoch, len(re.findall(rf" (?:{names})(?:-start)?\(", text))


if __name__ == "__main__":
    parallel.split_cpu()
    entry.run(main, __doc__)

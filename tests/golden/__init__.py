"""Golden values: what searches draw, show first, start from and learn, kept as small tables beside this file.

    python -m tests.golden        # measures them anew and overwrites the tables

This module is the only place that knows how the values are made; a change of the library's structure adapts it here.
The values themselves change only on purpose, since every earlier search would then no longer be repeated.
"""

import csv
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import search, train
from experiments.configs import loading
from experiments.configs.validation import check
from experiments.jobs.making import job_of
from highway_jax import data, parallel, population
from highway_jax.population.programs import Group

HERE = Path(__file__).parent


def draws() -> Iterator[dict[str, Any]]:
    """The hyperparameters that a search's runs draw."""
    for seed, first_run, num_runs in (0, 0, 6), (1, 4, 2):
        space = population.Space(check(loading.load("digits_depth10", {}).config)[0])
        runs = np.arange(first_run, first_run + num_runs)
        drawn = space.readable(space.draw(population.keys(seed)[0], runs), num_runs)
        for row, run in enumerate(runs.tolist()):
            yield {"seed": seed, "run": run} | {name: values[row] for name, values in drawn.items()}


def orders() -> Iterator[dict[str, Any]]:
    """The examples that an epoch (from 0) shows: the first ten, and a checksum of all in their order."""
    for examples, batch_size in (1500, 50), (60000, 100):  # the digits, MNIST
        for seed in (0, 1):
            for epoch in (0, 1, 2):
                numbers = np.arange(examples, dtype=np.int32)
                key = jax.random.fold_in(population.keys(seed)[1], epoch)
                order = np.ravel(data.shuffled_batches({"x": numbers, "y": numbers}, key, batch_size)["y"])
                yield {
                    "examples": examples,
                    "batch_size": batch_size,
                    "seed": seed,
                    "epoch": epoch,
                    "first": " ".join(map(str, order[:10])),
                    "md5": hashlib.md5(order.astype("<i4").tobytes()).hexdigest(),
                }


def weights() -> Iterator[dict[str, Any]]:
    """The initial weights of a search's runs 0 (of tanh) and 1 (of relu), and others': a few numbers of every array."""
    # As many runs as are trained below, so that their programs are compiled once.
    for name, network, seed, num_runs in (
        ("digits_depth10", "highway", 0, 6),
        ("digits_depth10", "plain", 0, 6),
        ("digits_conv", "highway", 1, 2),
    ):
        config = loading.load(name, {}).config
        config.num_runs, config.seed = num_runs, seed
        job = job_of(config, earlier={})
        planned = population.Search(**job.arguments(network) | {"space": population.Space(job.space)})
        group = Group(planned, {}, parallel.choose_mesh(num_runs, config.batch_size))
        runs = group.start(planned.drawn, np.arange(num_runs))
        for path, leaf in jax.tree.leaves_with_path(runs.state.params):
            for run in {"digits_depth10": (0, 1), "digits_conv": (1,)}[name]:
                values = np.asarray(leaf[run], np.float64)
                numbers = {"mean": values.mean(), "std": values.std()}
                numbers |= dict(zip(("first", "second", "third"), values.flat, strict=False))
                numbers["last"] = values.flat[-1]
                yield {
                    **{"config": name, "network": network, "seed": seed, "run": run},
                    **{"array": "/".join(key.key for key in path), "shape": "x".join(map(str, values.shape))},
                    **{key: f"{number:.7g}" for key, number in numbers.items()},
                }


def search_digits(workdir: Path, implementation: str) -> None:
    """The first six runs of both networks of the smallest search of Figure 1."""
    search.main(
        [
            "--config=digits_depth10", "--config.num_runs=6", "--config.epochs=4", "--config.evaluate_every=1",
            f"--config.implementation={implementation}", f"--workdir={workdir}",
        ]
    )  # fmt: skip


def train_digits(workdir: Path) -> None:
    """A convolutional network with dropout and shifted images, from two initializations of another seed.

    It trains on a third of the images, to be done soon.
    """
    train.main(
        [
            "--config=digits_conv", "--config.num_runs=2", "--config.epochs=2", "--config.seed=1",
            "--config.validation=1000", "--config.evaluate_every=2", f"--workdir={workdir}",
        ]
    )  # fmt: skip


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a table."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))

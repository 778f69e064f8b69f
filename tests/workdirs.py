"""Workdirs with given curves, written as a search writes them, for tests of code that reads workdirs."""

import csv
import json
import os

import filelock
import numpy as np

from experiments.configs import loading
from experiments.workdir import files
from highway_jax import population

OUTCOMES = ("best_loss", "best_epoch", "final_loss", "diverged", "epochs")
RUN_COLUMNS = (
    *("network", "run", "rank", "learning_rate", "momentum", "decay", "activation", "transform_bias"),
    *(*OUTCOMES, "test_accuracy"),
)


def shared(tmp_path_factory, name, make):
    """A folder that `make` fills once for all of xdist's workers, which must not change it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / name
    with filelock.FileLock(f"{folder}.lock"):
        if not (folder / "made").exists():
            folder.mkdir()
            make(folder)
            (folder / "made").touch()
    return folder


def write_csv(path, columns, rows):
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])


def write_workdir(directory, curves, depth=10, finished=True, **changes):
    """Write the workdir of a search with the given (runs, epochs) curves of every network."""
    first = next(iter(curves.values()))
    config = loading.load("digits_depth10", {}).config
    config.update({"depth": depth, "num_runs": len(first), "epochs": first.shape[1]} | changes)
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(config.to_json())

    runs, epochs, summary = [], [], {}
    for network, losses in curves.items():
        losses = np.float32(losses)
        ranking = population.rank(losses)
        rank_of = np.argsort(ranking.order) + 1
        draws = np.random.default_rng(0).uniform(0.1, 0.9, (len(losses), 5)).astype(np.float32)
        for run, curve in enumerate(losses):
            rate, momentum, decay, bias, accuracy = draws[run]
            settings = [rate, momentum, decay, ("relu", "tanh")[run % 2], "" if network == "plain" else -bias]
            outcome = [getattr(ranking, name.removesuffix("_loss"))[run] for name in OUTCOMES]
            runs.append([network, run, rank_of[run], *settings, *outcome, accuracy])
            trained = curve[: ranking.epochs[run]]
            epochs += [(network, run, epoch, loss) for epoch, loss in enumerate(trained, start=1)]
        summary[network] = {"num_runs": len(losses)}
    write_csv(directory / "runs.csv", RUN_COLUMNS, runs)
    write_csv(directory / "curves.csv", ("network", "run", "epoch", "train_loss"), epochs)
    if finished:
        (directory / "summary.json").write_text(json.dumps(summary))
    about = {"format": files.FORMAT, "commit": "abc123", "versions": {"jax": "0.10.2"}}
    about |= {"data_md5": {}, "implementations": {}, "earlier": []}
    if finished:
        about["seconds"] = dict.fromkeys(curves, 75.0)
    (directory / "provenance.json").write_text(json.dumps(about))
    return directory

"""Look inside a trained highway network: gates, routing, lesions, depth in use (Section 4, Figures 2 to 4).

    python -m experiments.analyze --workdir=runs/digits_depth50
    python -m experiments.analyze --workdir=runs/digits_depth50_highway_run7 --title="Digits, run 7"

--workdir=WORKDIR  of a search, whose best run's parameters it holds, or of experiments.train, for any other run
--network=NAME     kind of network; highway by default, the only one that has gates
--rank=N           the Nth best run of the workdir, 1 by default, or
--run=N            run number N
--data_dir=DIR     where prepared TFDS datasets are; by default $TFDS_DATA_DIR or ~/tensorflow_datasets
--config=FILE      the config file whose function has the data, if one does
--title=TEXT       what the figures call the network; its dataset by default

All of it is measured on the whole training set, as in the paper. The workdir gets figure2.png, figure3.png,
figure4.png, depth_in_use.png and analysis.json, which holds every number behind them (null: not finite); its
report.html then shows them.
"""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import cli, datasets, jobs, report, results, settings, train, workdir
from experiments.checks import check_search, check_training
from experiments.cli import UserError
from experiments.configs.figure1 import WIDTHS
from experiments.observations import Analysis, captions, summarize
from experiments.results import Result
from highway_jax import analysis, data, parallel
from highway_jax.analysis import plots as gate_plots
from highway_jax.files import write_whole

SAMPLE = 0  # the index of the training image whose gates and block outputs are shown
BINS = 60  # of the histogram of open layers


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network.

    Attributes:
      kind, run, rank: which of its workdir it is.
      hyperparameters: the run's.
      epoch: epochs it was trained for when it had these parameters.
      file: the checkpoint of the parameters.
    """

    kind: str
    run: int
    rank: int
    hyperparameters: dict[str, Any]
    epoch: int
    file: Path


def main(argv: list[str]) -> None:
    values = flags.FlagValues()
    cli.define_path("workdir", None, "of a search or a run", values)
    flags.DEFINE_string("network", "highway", "kind of network", flag_values=values)
    flags.DEFINE_integer("rank", None, "rank, from 1", flag_values=values)
    flags.DEFINE_integer("run", None, "run number", flag_values=values)
    cli.define_path("data_dir", None, "where prepared datasets are", values)
    cli.define_path("config", None, "whose function has the data", values)
    flags.DEFINE_string("title", None, "what the figures call the network", flag_values=values)
    cli.parse_flags(argv, values)
    settings.pin()
    if values.workdir is None:
        raise UserError("--workdir is missing; it must be the workdir of a search or of a run trained again")
    found = results.load(values.workdir)
    network = choose(found, values.network, values.run, values.rank)
    config = results.as_program_has_it(found.config)
    check = check_search if "search" in config else check_training
    with results.naming_config(found):
        check(config)
    if values.data_dir is not None:
        config.data_dir = values.data_dir
        check(config)
    params = results.read_params(found, network.file)
    function = None if values.config is None else cli.load_config(values.config)[2]
    dataset = datasets.load(config.dataset, config.data_dir, function)
    if "stages" in config:  # the held-out part of the training set was not trained on
        dataset = dataclasses.replace(dataset, train=jobs.hold_out(config, dataset)[0])
    workdir.check_data(found.directory, found.provenance, {"train": data.md5(dataset.train)})
    model, preprocess = build(config, dataset, network, params)

    started = time.monotonic()
    cli.say(
        f"{dataset.name}, depth {found.depth}, {network.kind} run {network.run} (rank {network.rank}) "
        f"after epoch {network.epoch}: {len(dataset.train['y'])} training examples"
    )
    analyzed = analyze(model, params, dataset.train, preprocess)
    title = (values.title or dataset.name).encode(errors="replace").decode()  # a command line's bytes may be no text
    write(found.directory, dataset, network, analyzed, title)
    cli.say(f"analysis: {found.directory / 'analysis.json'}, {time.monotonic() - started:.0f} s")
    report.write([found], found.directory)


def choose(found: Result, kind: str, run: int | None, rank: int | None) -> Network:
    """The network that is meant, the best one by default.

    Raises:
      UserError: if it is not in the workdir, has no gates, or its parameters are not kept.
    """
    if kind != "highway" and kind in WIDTHS:
        raise UserError(f"--network is {kind!r}, which has no transform gates to look at; it must be 'highway'")
    if "highway" not in found.kinds:
        raise UserError(f"{found.directory} holds no highway networks, and no others have transform gates to look at")
    if kind in found.kinds and kind not in found.networks:
        raise UserError(
            f"{found.directory} holds no {kind} run yet; the same command as before goes on with its search"
        )
    kind, run = train.choose(found, kind, run, 1 if rank is None and run is None else rank)
    runs = found.networks[kind]
    row = int(np.flatnonzero(runs.run == run)[0])
    best = runs.rank[row] == 1
    file = found.directory / (f"best/{kind}" if best else f"params/{kind}/run{run}")
    if not np.isfinite(runs.best_loss[row]):
        raise UserError(
            f"{kind} run {run} of {found.directory} never had a finite loss, so there is nothing to look at"
        )
    if not file.is_dir():
        command = f"python -m experiments.train --from_search={found.directory} --network={kind} --run={run}"
        raise UserError(
            f"{file} is missing; the workdir holds no parameters"
            if best
            else f"{found.directory} holds its best run's parameters alone; for run {run}, first train it: {command}"
        )
    hyperparameters = {name: values[row].item() for name, values in runs.hyperparameters.items()}
    return Network(
        kind=kind,
        run=run,
        rank=int(runs.rank[row]),
        hyperparameters=hyperparameters,
        epoch=int(runs.best_epoch[row]) if best else runs.curves.shape[1],
        file=file,
    )


def build(
    config: ConfigDict, dataset: data.Dataset, network: Network, params: Any
) -> tuple[nn.Module, jobs.Preprocess]:
    """The network's model, and what turns images into its input.

    Raises:
      UserError: if the parameters are of another model, or not finite.
    """
    build = (jobs.mlp if "search" in config else jobs.convnet)(config, dataset, network.kind)
    preprocess = jobs.preprocessing(config, dataset.max_value, dataset.train["x"])
    model = build(network.hyperparameters)
    results.check_params(network.file, params, model, preprocess(dataset.train["x"][:1]))
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
        raise UserError(
            f"{network.file} holds parameters that are not finite: {network.kind} run {network.run} diverged"
        )
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    return model, preprocess


def analyze(model: nn.Module, params: Any, split: data.Split, preprocess: jobs.Preprocess) -> Analysis:
    """Everything that the figures show, saying what is being done."""
    cli.say("gates of every image")
    gates = analysis.gate_statistics(model, params, split, preprocess=preprocess)
    if len(gates.bias) < 2:
        raise UserError("the network has a single highway layer; an analysis needs two or more")
    sample = analysis.inner_states(model, params, split["x"][SAMPLE], preprocess=preprocess)
    cli.say(f"lesions of {len(gates.bias)} layers, one at a time")
    lesions = analysis.lesion(model, params, split, preprocess=preprocess)
    if not np.isfinite(lesions.loss).any():
        raise UserError("the network's loss is not finite without any of its layers; there is nothing to look at")
    cli.say(f"dropping 1 to {len(gates.bias)} layers together")
    dropped = analysis.drop_layers(model, params, split, lesions.order, preprocess=preprocess)
    return Analysis(gates, sample, lesions, dropped)


def write(directory: Path, dataset: data.Dataset, network: Network, found: Analysis, title: str) -> None:
    """Write the figures and `analysis.json` to a workdir."""
    hp = network.hyperparameters
    gates, lesions = {title: found.gates}, {title: found.lesions}
    for name, figure in {
        "figure2.png": gate_plots.figure2(gates, {title: found.sample}, {title: hp["transform_bias"]}),
        "figure3.png": gate_plots.figure3(gates),
        "figure4.png": gate_plots.figure4(lesions),
        "depth_in_use.png": gate_plots.depth_in_use(gates, lesions, {title: found.dropped}),
    }.items():
        write_whole(directory / name, report.png(figure))
    counts, edges = np.histogram(found.gates.open_layers, BINS)
    images, label = len(dataset.train["y"]), int(dataset.train["y"][SAMPLE])
    summary = summarize(found, hp["transform_bias"])
    what = f"{network.kind} run {network.run} ({hp['activation']}, after epoch {network.epoch}) on {title}"
    sample = f"training image {SAMPLE}, of class {label}"
    numbers = {
        "dataset": dataset.name,
        "split": "train",
        "images": images,
        "network": network.kind,
        "run": network.run,
        "rank": network.rank,
        "epoch": network.epoch,
        "parameters": network.file.relative_to(directory).as_posix(),
        "hyperparameters": hp,
        "summary": summary,
        "captions": captions(what, images, sample, hp["transform_bias"], summary),
        "gates": {**found.gates._asdict(), "open_layers": {"counts": counts, "edges": edges}},
        "routing": found.gates.routing,
        "sample": {"index": SAMPLE, "label": label, **found.sample._asdict()},
        "lesions": {**found.lesions._asdict(), "damage": found.lesions.damage},
        "dropped": found.dropped._asdict(),
    }
    workdir.write_text(directory / "analysis.json", json.dumps(_json(numbers), allow_nan=False) + "\n")


def _json(value: Any) -> Any:
    """As JSON has it: float32 in as few digits as give it back, null for what is not finite."""
    if isinstance(value, Mapping):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return [_json(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(str(value)) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


if __name__ == "__main__":
    parallel.split_cpu()
    cli.run(main, __doc__)

"""Look inside a trained highway network: gates, routing, lesions, depth in use (Section 4, Figures 2 to 4).

    python -m experiments.analyze --workdir=runs/digits_depth50
    python -m experiments.analyze --workdir=runs/digits_depth50_highway_run7 --title="Digits, run 7"

--workdir=WORKDIR  of a search, whose best run's parameters it holds, or of experiments.train, for any other run
--network=NAME     kind of network; highway by default, the only one that has gates
--rank=N           the Nth best run of the workdir, 1 by default, or
--run=N            run number N
--data_dir=DIR     where prepared TFDS datasets are, if not where they were when the network was trained
--title=TEXT       what the figures call the network; its dataset by default

All of it is measured on the whole training set, as in the paper. The workdir gets figure2.png, figure3.png, figure4.png,
depth_in_use.png and analysis.json, which holds every number behind them (null: not finite); its report.html then shows
them.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import cli, report, results, search, train, workdir
from experiments.checks import check
from experiments.cli import UserError
from experiments.results import Result
from highway_jax import analysis, checkpoint, data, gate_plots, parallel, training

SAMPLE = 0  # the index of the training image whose gates and block outputs are shown
BINS = 60  # of the histogram of open layers
OPEN = 0.5  # a gate above this transforms more than it carries
STEADY = 0.1  # a block output is steady if a layer changes it by less, in units of all outputs' root mean square
IDLE = 0.001  # a layer is idle if the error rises by less without it
TOLERATED = 0.01  # how far the error may rise when layers are dropped together


@dataclass(frozen=True)
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
    hyperparameters: training.Hyperparameters
    epoch: int
    file: Path


@dataclass(frozen=True)
class Analysis:
    """What `highway_jax.analysis` finds on a training set."""

    gates: analysis.GateStatistics
    sample: analysis.InnerStates
    lesions: analysis.Lesions
    dropped: analysis.Dropped


def main(argv: list[str]) -> None:
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "of a search or a run", flag_values=values)
    flags.DEFINE_string("network", "highway", "kind of network", flag_values=values)
    flags.DEFINE_integer("rank", None, "rank, from 1", flag_values=values)
    flags.DEFINE_integer("run", None, "run number", flag_values=values)
    flags.DEFINE_string("data_dir", None, "where prepared datasets are", flag_values=values)
    flags.DEFINE_string("title", None, "what the figures call the network", flag_values=values)
    cli.parse_flags(argv, values)
    if values.workdir is None:
        raise UserError("--workdir is missing; it must be the workdir of a search or of a run trained again")
    found = results.load(values.workdir)
    network = choose(found, values.network, values.run, values.rank)
    config = train.config_of_run(found.config, network.kind, network.run)
    if values.data_dir is not None:
        config.data_dir = values.data_dir
    check(config)
    params = restore(found.directory, network.file)
    dataset = data.load(config.dataset, config.data_dir)
    model, preprocess = build(config, dataset, network, params)

    started = time.monotonic()
    cli.say(
        f"{dataset.name}, depth {config.depth}, {network.kind} run {network.run} (rank {network.rank}) "
        f"after epoch {network.epoch}: {len(dataset.train.labels)} training images"
    )
    analyzed = analyze(model, params, dataset.train, preprocess)
    write(found.directory, dataset, network, analyzed, values.title or dataset.name)
    cli.say(f"analysis: {found.directory / 'analysis.json'}, {time.monotonic() - started:.0f} s")
    report.write([found], found.directory)


def choose(found: Result, kind: str, run: int | None, rank: int | None) -> Network:
    """The network that is meant, the best one by default.

    Raises:
      UserError: if it is not in the workdir, has no gates, or its parameters are not kept.
    """
    if kind == "plain":
        raise UserError("--network is 'plain', which has no gates to look at; it must be 'highway'")
    if "highway" not in found.config.networks:
        raise UserError(f"{found.directory} holds no highway networks, and plain ones have no gates to look at")
    if kind in found.config.networks and kind not in found.networks:
        raise UserError(f"{found.directory} holds no {kind} run yet; the same command as before goes on with its search")
    kind, run = train.choose(found, kind, run, 1 if rank is None and run is None else rank)
    runs = found.networks[kind]
    row = int(np.flatnonzero(runs.run == run)[0])
    best = runs.rank[row] == 1
    file = found.directory / (f"best/{kind}" if best else f"params/{kind}/run{run}")
    if not np.isfinite(runs.best_loss[row]):
        raise UserError(f"{kind} run {run} of {found.directory} never had a finite loss, so there is nothing to look at")
    if not file.is_dir():
        command = f"python -m experiments.train --from_search={found.directory} --network={kind} --run={run}"
        raise UserError(
            f"{file} is missing; the workdir holds no parameters"
            if best
            else f"{found.directory} holds the parameters of its best run alone; for run {run}, first train it: {command}"
        )
    hyperparameters = {name: values[row].item() for name, values in runs.hyperparameters.items()}
    return Network(
        kind=kind,
        run=run,
        rank=int(runs.rank[row]),
        hyperparameters=training.Hyperparameters(**hyperparameters),
        epoch=int(runs.best_epoch[row]) if best else runs.curves.shape[1],
        file=file,
    )


def restore(directory: Path, file: Path) -> Any:
    """Read a network's parameters, of a finished workdir only if they are as they were written."""
    if (directory / checkpoint.SUMS).exists():
        files = (entry for entry in file.rglob("*") if entry.is_file())
        if damaged := checkpoint.damaged_file(directory, files):
            raise workdir.damaged(directory / damaged)
    try:
        return checkpoint.restore_params(file)
    except Exception as error:  # Orbax and TensorStore have many
        raise UserError(f"{file} is damaged, or holds no parameters: {data.first_line(error)}") from error


def build(
    config: ConfigDict, dataset: data.Dataset, network: Network, params: Any
) -> tuple[nn.Module, analysis.Preprocess]:
    """The network's model, and what turns images into its input.

    Raises:
      UserError: if the parameters are of another model, or not finite.
    """
    recipe = search.recipe(config, dataset, network.kind)
    model = recipe.network(network.hyperparameters)
    images = dataset.train.images[:1]
    expected = jax.eval_shape(lambda: model.init(jax.random.key(0), recipe.preprocess(images)))["params"]
    there, needed = (jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) for tree in (params, expected))
    if there != needed:
        raise UserError(f"{network.file} does not fit the workdir's config: its parameters are of another network")
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
        raise UserError(f"{network.file} holds parameters that are not finite: {network.kind} run {network.run} diverged")
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    return model, recipe.preprocess


def analyze(model: nn.Module, params: Any, split: data.Split, preprocess: analysis.Preprocess) -> Analysis:
    """Everything that the figures show, saying what is being done."""
    cli.say("gates of every image")
    gates = analysis.gate_statistics(model, params, split, preprocess=preprocess)
    sample = analysis.inner_states(model, params, split.images[SAMPLE], preprocess=preprocess)
    cli.say(f"lesions of {len(gates.bias)} layers, one at a time")
    lesions = analysis.lesion(model, params, split, preprocess=preprocess)
    cli.say(f"dropping 1 to {len(gates.bias)} layers together")
    dropped = analysis.drop_layers(model, params, split, lesions.order, preprocess=preprocess)
    return Analysis(gates, sample, lesions, dropped)


def write(directory: Path, dataset: data.Dataset, network: Network, found: Analysis, title: str) -> None:
    """Write the figures and `analysis.json` to a workdir."""
    hp = network.hyperparameters
    names = (title,)
    gates, sample, lesions, dropped = (
        dict(zip(names, (part,), strict=True)) for part in (found.gates, found.sample, found.lesions, found.dropped)
    )
    for name, figure in {
        "figure2.png": gate_plots.figure2(gates, sample, {title: hp.transform_bias}),
        "figure3.png": gate_plots.figure3(gates),
        "figure4.png": gate_plots.figure4(lesions),
        "depth_in_use.png": gate_plots.depth_in_use(gates, lesions, dropped),
    }.items():
        (directory / name).write_bytes(report.png(figure))
    counts, edges = np.histogram(found.gates.open_layers, BINS)
    label = int(dataset.train.labels[SAMPLE])
    summary = summarize(found, hp.transform_bias)
    numbers = {
        "dataset": dataset.name,
        "split": "train",
        "images": len(dataset.train.labels),
        "network": network.kind,
        "run": network.run,
        "rank": network.rank,
        "epoch": network.epoch,
        "parameters": network.file.relative_to(directory).as_posix(),
        "hyperparameters": vars(hp),
        "summary": summary,
        "captions": captions(dataset.name, network, len(dataset.train.labels), label, summary),
        "gates": {**found.gates._asdict(), "open_layers": {"counts": counts, "edges": edges}},
        "routing": found.gates.routing,
        "sample": {"index": SAMPLE, "label": label, **found.sample._asdict()},
        "lesions": {**found.lesions._asdict(), "damage": found.lesions.damage},
        "dropped": found.dropped._asdict(),
    }
    workdir.write_text(directory / "analysis.json", json.dumps(_json(numbers), allow_nan=False) + "\n")


def summarize(found: Analysis, initial_bias: float) -> dict[str, Any]:
    """The paper's observations as numbers.

    Returns:
      biases_lowered: fraction of the gates' biases that are below the initial one.
      bias_depth_correlation: of a layer's mean bias with its number.
      bias_activity_correlation: of a gate's bias with its mean output.
      open_on_average, open_in_sample: fraction of gates whose (mean) output is above 0.5.
      steady_outputs: fraction of the sample's block outputs that a layer changes by less than a tenth of the root mean
        square of all of them.
      change_depth: the layer up to which there is 90 % of the change of the sample's block outputs from layer to layer.
      routing_depth_half, routing_depth: the layer up to which there is half, and 90 %, of the classes' absolute
        difference from the overall mean.
      open_layers: a sample's mean number of layers' worth of open gates.
      intact_error, worst_error, worst_layer: without a lesion, and with the worst.
      idle_layers: how many layers' lesions raise the error by less than 0.1 percentage points.
      effective_layers: see `highway_jax.analysis.effective_layers`.
      droppable_layers: how many layers can be dropped, the least important first, before the error has risen by more than
        one percentage point.
    """
    gates, lesions, dropped = found.gates, found.lesions, found.dropped
    layers = np.arange(1, len(gates.bias) + 1)
    known = np.isfinite(gates.bias)
    change = np.abs(np.diff(found.sample.block_output, axis=0))
    scale = np.sqrt(np.nanmean(np.square(found.sample.block_output)))
    routing = np.nanmean(np.abs(gates.routing), axis=(0, 2))
    risen = dropped.error - lesions.intact_error > TOLERATED
    return {
        "biases_lowered": np.mean(gates.bias[known] < initial_bias),
        "bias_depth_correlation": _correlation(layers, np.nanmean(gates.bias, axis=1)),
        "bias_activity_correlation": _correlation(gates.bias[known], gates.mean[known]),
        "open_on_average": np.mean(gates.mean[known] > OPEN),
        "open_in_sample": np.mean(found.sample.transform_gate[known] > OPEN),
        "steady_outputs": np.mean(change[np.isfinite(change)] < STEADY * scale),
        "change_depth": 1 + _depth_of_share(np.nansum(change, axis=1), 0.9),
        "routing_depth_half": _depth_of_share(routing, 0.5),
        "routing_depth": _depth_of_share(routing, 0.9),
        "open_layers": gates.open_layers.mean(dtype=float),
        "intact_error": lesions.intact_error,
        "worst_error": np.nanmax(lesions.error),
        "worst_layer": 1 + np.nanargmax(lesions.error),
        "idle_layers": np.sum(lesions.error - lesions.intact_error < IDLE),
        "effective_layers": analysis.effective_layers(lesions.damage),
        "droppable_layers": np.argmax(risen) - 1 if risen.any() else len(layers),
    }


def captions(dataset: str, network: Network, images: int, label: int, summary: Mapping[str, Any]) -> dict[str, str]:
    """What is written below each figure."""
    s, hp = summary, network.hyperparameters
    layers = "highway layers are counted from 1"
    return {
        "figure2.png": (
            f"The transform gates of {network.kind} run {network.run} ({hp.activation}, after epoch {network.epoch}) on "
            f"{dataset}; {layers}. Biases: they started from {hp.transform_bias:.2f}, and {s['biases_lowered']:.0%} are "
            f"lower now. Mean outputs: over {images:,} training images; {s['open_on_average']:.1%} of the gates are open, "
            f"above {OPEN}. One sample: training image {SAMPLE}, of class {label}; {s['open_in_sample']:.1%} of its gates "
            f"are open. {s['steady_outputs']:.0%} of its block outputs differ from the layer before's by less than a tenth "
            f"of their root mean square; 90% of the change is over at layer {s['change_depth']}."
        ),
        "figure3.png": (
            "Mean transform gate outputs over single classes less those over all training images. Half of the difference, "
            f"over all classes, is in layers 1 to {s['routing_depth_half']}, and 90% in layers 1 to {s['routing_depth']}."
        ),
        "figure4.png": (
            f"Error on all {images:,} training images with the gates of one layer closed: {s['intact_error']:.2%} "
            f"without a lesion, {s['worst_error']:.2%} with the worst, of layer {s['worst_layer']}. Without any one of "
            f"{s['idle_layers']} layers it rises by less than {IDLE:.1%} of the images. Effective layers: the exponential of "
            "the entropy of the lesions' shares of the total rise in loss."
        ),
        "depth_in_use.png": (
            f"Left: error without several layers at once; {s['droppable_layers']} can go before it has risen by more than "
            f"{TOLERATED:.0%} of the images. Middle: the sum over layers of a sample's mean gate output, "
            f"{s['open_layers']:.1f} on average. Right: how much of the mean gate output, and of the lesions' rise in "
            "loss, is in the layers up to each."
        ),
    }


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; NaN if either is constant."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(a, b)[0, 1])


def _depth_of_share(values: np.ndarray, share: float) -> int:
    """How many of the first values hold this share of their sum."""
    return 1 + int(np.argmax(np.cumsum(values) >= share * values.sum()))


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

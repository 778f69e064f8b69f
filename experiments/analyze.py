"""Analyze a trained highway network: gates, routing, lesions and effective depth (Section 4, Figures 2 to 4).

    python -m experiments.analyze runs/digits_depth50
    python -m experiments.analyze runs/digits_depth50_highway_run7 --title="Digits, run 7"

WORKDIR            of a search, which has the best run's parameters, or of experiments.train, for any other run;
                   --workdir=WORKDIR does the same
--network=NAME     kind of network; highway by default, the only one with gates
--rank=N           the Nth best run of the workdir, 1 by default, or
--run=N            run number N
--data_dir=DIR     where prepared TFDS datasets are; by default $TFDS_DATA_DIR or ~/tensorflow_datasets
--config=FILE      the config file, if a function in it gives the data
--title=TEXT       name of the network in the figures; the dataset's name by default
--redraw           only draw the figures of an earlier analysis again, from analysis.json; takes --title alone

Everything is measured on the whole training set, as in the paper. The program writes figure2.png, figure3.png,
figure4.png, depth_in_use.png and analysis.json to the workdir. analysis.json holds every number behind the figures
(null: not finite). The workdir's report.html then shows the figures.
"""

import dataclasses
import time

import jax
import numpy as np
from absl import flags

from experiments.app import command_line, compiled, entry, output, settings
from experiments.app.errors import UserError
from experiments.configs import loading
from experiments.configs.validation import check_values
from experiments.jobs import datasets, networks, trained
from experiments.jobs.running import warnings_in_a_line
from experiments.pages import inside, page
from experiments.workdir import reading
from experiments.workdir.identity import check_data
from highway_jax import analysis, data, parallel
from highway_jax.analysis import Analysis


def main(argv: list[str]) -> None:
    values = flags.FlagValues()
    command_line.define_path("workdir", None, "of a search or a run", values)
    flags.DEFINE_string("network", "highway", "kind of network", flag_values=values)
    flags.DEFINE_integer("rank", None, "rank, from 1", flag_values=values)
    flags.DEFINE_integer("run", None, "run number", flag_values=values)
    command_line.define_path("data_dir", None, "where prepared datasets are", values)
    command_line.define_path("config", None, "whose function has the data", values)
    flags.DEFINE_string("title", None, "what the figures call the network", flag_values=values)
    flags.DEFINE_bool("redraw", False, "the figures only", flag_values=values)
    given = command_line.parse_flags(argv, values, positional=True) + [values.workdir] * (values.workdir is not None)
    settings.pin()
    compiled.keep()
    if len(given) != 1:
        raise UserError(
            f"{len(given)} workdirs are given; there must be one, of a search or of a run trained again"
            if given
            else "WORKDIR is missing; it must be the workdir of a search or of a run trained again"
        )
    title = values.title and values.title.encode(errors="replace").decode()  # arguments may not be text
    if values.redraw and (others := [n for n in ("network", "rank", "run", "data_dir", "config") if values[n].present]):
        raise UserError(f"--{others[0]} is given with --redraw, which takes --title alone")
    found = reading.load(command_line.expanded(given[0]))
    if values.redraw:
        inside.redraw(found.directory, title)
        output.say(f"figures: {found.directory / 'figure2.png'}, figure3.png, figure4.png, depth_in_use.png")
        if (found.directory / "report.html").exists():
            page.write([found], found.directory)
        return
    network = trained.choose_network(found, values.network, values.run, values.rank)
    config = found.config
    config.data_dir = values.data_dir
    check_values(config)
    function = None if values.config is None else loading.load(values.config, {}).function
    dataset = datasets.load(config.dataset, config.data_dir, function)
    # The network was not trained on the held-out part of the training set.
    dataset = dataclasses.replace(dataset, train=networks.hold_out(config, dataset)[0])
    check_data(found.directory, found.provenance, {"train": data.md5(dataset.train)})
    model, params, preprocess = trained.read_network(found, network, config, dataset)

    started = time.monotonic()
    output.say(
        f"{dataset.name}, depth {found.depth}, {network.kind} run {network.run} (rank {network.rank}) "
        f"after epoch {network.epoch}: {len(dataset.train['y'])} training examples"
    )
    with jax.default_matmul_precision(config.matmul_precision), warnings_in_a_line():
        analyzed = analyze(model, params, dataset.train, preprocess)
    inside.write(found.directory, dataset, network, analyzed, title or dataset.name)
    output.say(f"analysis: {found.directory / 'analysis.json'}, {time.monotonic() - started:.0f} s")
    page.write([found], found.directory)


def analyze(model: object, params: object, split: data.Split, preprocess: networks.Preprocess) -> Analysis:
    """Compute everything that the figures show, and print each step."""
    output.say("gates of every image")
    gates = analysis.gate_statistics(model, params, split, preprocess=preprocess)
    if len(gates.bias) < 2:
        raise UserError("the network has a single highway layer; an analysis needs two or more")
    sample = analysis.inner_states(model, params, split["x"][inside.SAMPLE], preprocess=preprocess)
    output.say(f"lesions of {len(gates.bias)} layers, one at a time")
    lesions = analysis.lesion(model, params, split, preprocess=preprocess)
    if not np.isfinite(lesions.loss).any():
        raise UserError("the network's loss is not finite whichever layer is removed; there is nothing to analyze")
    output.say(f"dropping 1 to {len(gates.bias)} layers together")
    dropped = analysis.drop_layers(model, params, split, lesions.order, preprocess=preprocess)
    return Analysis(gates, sample, lesions, dropped)


if __name__ == "__main__":
    parallel.split_cpu()
    entry.run(main, __doc__)

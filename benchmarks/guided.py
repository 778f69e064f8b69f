"""Compare guided search with random search: the best loss against the number of runs, over several seeds.

    pip install -e '.[optuna]'
    python -m benchmarks.guided --config=digits_depth50 --config.runs_in_memory=20

--config=NAME, --config.KEY=VALUE   a search and changes of its keys, as in experiments.search
--seeds=N                           number of searches with each sampler; their seeds are 0 to N - 1
--folder=DIR                        holds the searches' workdirs; the same command resumes them

At each seed, both samplers share the first generation. Writes benchmarks/results/guided_NAME.json and .png.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments import search
from experiments.app import command_line, entry
from experiments.app.machine import hardware
from experiments.workdir import reading
from highway_jax import parallel
from highway_jax.plotting import COLORS, FAINT, TEXT, plain_ticks

LOOKS = {"random": {"color": FAINT, "linestyle": "--"}, "tpe": {"linestyle": "-"}}


def main(argv: list[str]) -> None:
    """The program."""
    values = flags.FlagValues()
    flags.DEFINE_integer("seeds", 5, "", lower_bound=1, flag_values=values)
    command_line.define_path("folder", "runs/guided", "", values)
    name, overrides, rest = command_line.split_config_flags(argv)
    command_line.parse_flags(rest, values)
    given = [f"--config={name}", *(f"--config.{key}={value}" for key, value in overrides.items())]
    losses: dict[str, dict[str, list[list[float]]]] = {}
    for seed in range(values.seeds):
        for sampler in LOOKS:
            directory = Path(values.folder) / f"{name}_{sampler}_{seed}"
            search.main([*given, f"--config.seed={seed}", f"--config.sampler={sampler}", f"--workdir={directory}"])
            found = reading.load(directory)
            for network, result in found.results.items():
                best = result.ranking.best.astype(float).tolist()
                losses.setdefault(network, {}).setdefault(sampler, []).append(best)
    config = found.config
    written = {
        "config": name,
        **{key: config[key] for key in ("num_runs", "epochs", "runs_in_memory")},
        "seeds": values.seeds,
        "summary": {network: {s: summarize(np.array(of)) for s, of in by.items()} for network, by in losses.items()},
        "best_loss": losses,  # of every run, by network, sampler and seed
        "hardware": hardware(),
    }
    path = Path(__file__).parent / "results" / f"guided_{name}"
    path.with_suffix(".json").write_text(json.dumps(written) + "\n")
    draw(written).savefig(path.with_suffix(".png"), dpi=130)
    print(json.dumps(written["summary"], indent=2))


def summarize(losses: np.ndarray) -> dict[str, list[float]]:
    """The minimum, median and maximum over the seeds, from best losses of shape (seeds, runs)."""

    def spread(values: np.ndarray) -> list[float]:
        return [float(f"{value:.3g}") for value in (values.min(), np.median(values), values.max())]

    top = np.sort(losses, axis=1)[:, :10]
    return {"best": spread(losses.min(axis=1)), "mean_of_best_ten": spread(top.mean(axis=1))}


def best_so_far(losses: np.ndarray, count: int) -> np.ndarray:
    """The mean of the `count` best runs so far, (seeds, runs); NaN while there are fewer runs than that."""
    means = [np.sort(losses[:, :runs], axis=1)[:, :count].mean(axis=1) for runs in range(count, losses.shape[1] + 1)]
    return np.concatenate([np.full((len(losses), count - 1), np.nan), np.stack(means, axis=1)], axis=1)


def draw(result: dict[str, Any]) -> Figure:
    """Plot the best loss and the mean of the best ten against the number of runs, after the first generation."""
    networks, first = result["best_loss"], result["runs_in_memory"]
    figure = Figure(figsize=(1 + 4.5 * len(networks), 6.5), layout="constrained")
    rows = figure.subplots(2, len(networks), squeeze=False, sharex=True)
    for panels, count, label in zip(rows, (1, 10), ("best loss so far", "mean of the best ten so far"), strict=True):
        for axes, (network, by) in zip(panels, networks.items(), strict=True):
            for sampler, seeds in by.items():
                curves = best_so_far(np.array(seeds), count)[:, first - 1 :]
                look = {"color": COLORS.get(network, TEXT)} | LOOKS[sampler]
                runs = np.arange(first, first + curves.shape[1])
                axes.fill_between(runs, curves.min(axis=0), curves.max(axis=0), alpha=0.15, lw=0, color=look["color"])
                axes.plot(runs, np.median(curves, axis=0), linewidth=2, label=sampler, **look)
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            if high < 100 * low:
                plain_ticks(axes.yaxis)
            axes.set_xlim(first, None)
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.grid(which="both", alpha=0.25, linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel(f"{label} (nats)", color=TEXT)
    for axes, network in zip(rows[0], networks, strict=True):
        axes.set_title(network, loc="left", fontsize=11, color=TEXT)
        axes.legend(frameon=False, loc="upper right", labelcolor=TEXT)
    for axes in rows[1]:
        axes.set_xlabel(f"runs; the first {first} are the same", color=TEXT)
    title = f"{result['config']}, {result['epochs']} epochs; median, least and greatest of {result['seeds']} seeds"
    figure.suptitle(title, fontsize=12, color=TEXT, x=0.01, ha="left")
    return figure


if __name__ == "__main__":
    parallel.split_cpu()
    entry.run(main, __doc__)

"""Which networks of 30 layers learn the digits: with highway layers, pre-norm residual blocks, or plain layers?

    python -m examples.deep_residual           # 24 runs of 15 epochs
    python -m examples.deep_residual 9 2       # 9 runs of 2 epochs

The kind of network is one more hyperparameter: every learning rate is tried with each kind. The program then analyzes
the best highway and the best pre-norm network: how far their gates open, and what each network loses without one of its
layers.
"""

import sys
from pathlib import Path

import flax.linen as nn
import numpy as np
import optax

from highway_jax import MLP, Skippable, analysis, data, parallel, population
from highway_jax.analysis import plots
from highway_jax.population import grid, log_uniform

DEPTH, WIDTH = 30, 50
OUT = Path("runs/deep_residual")
DIGITS = data.load("digits")
TRAIN, TEST = (
    {"x": split["x"].reshape(-1, 64).astype(np.float32) / 16, "y": split["y"]} for split in (DIGITS.train, DIGITS.test)
)


class PreNormBlock(nn.Module):
    """x + W relu(LayerNorm(x)), where the sum is `Skippable`, so that the branch can be left out."""

    @nn.compact
    def __call__(self, x, _):
        return Skippable()(x, nn.Dense(WIDTH)(nn.relu(nn.LayerNorm()(x)))), None


class PreNorm(nn.Module):
    """A first and a last layer, and 28 blocks between them. `nn.scan` compiles one block instead of 28."""

    @nn.compact
    def __call__(self, x):
        axes = {"params": 0, "intermediates": 0}
        blocks = nn.scan(PreNormBlock, variable_axes=axes, split_rngs={"params": True}, length=DEPTH - 2)
        x, _ = blocks()(nn.Dense(WIDTH)(x), None)
        return nn.Dense(10)(nn.LayerNorm()(x))


def model(kind):
    """The network of a kind."""
    if kind == "prenorm":
        return PreNorm()
    return MLP(DEPTH, WIDTH, num_classes=10, kind=kind, activation="tanh", transform_bias=-2.0)


TASK = population.supervised(
    model=lambda hp: model(hp["kind"]),
    loss=population.cross_entropy,
    optimizer=lambda hp: optax.sgd(hp["lr"], momentum=0.9),
    metrics={"accuracy": population.accuracy},
)
# A grid: every kind is trained with each drawn rate. A static value may decide the network's structure. The runs of
# each kind are compiled together, and all runs are ranked together.
SPACE = {"kind": grid("highway", "prenorm", "plain", static=True), "lr": log_uniform(1e-2, 0.5)}


def main(num_runs=24, epochs=15):
    """Train all runs, compare the kinds, and analyze the best highway and the best pre-norm network."""
    result = population.fit(
        TASK,
        SPACE,
        train=TRAIN,
        evaluate={"test": TEST},
        num_runs=num_runs,
        epochs=epochs,
        batch_size=50,
        keep="all",  # keep all parameters, to analyze the best network of each kind
    )
    table = result.table().sort_values("rank")
    # A network that guesses has a loss of log(10) = 2.3 and an accuracy of 10 %.
    table["learned"] = table["final_test_accuracy"] > 0.5
    by_kind = table.groupby("kind").agg(
        runs=("run", "size"),
        learned=("learned", "sum"),
        best_loss=("best_train_loss", "min"),
        best_accuracy=("final_test_accuracy", "max"),
    )
    print(by_kind.to_string())

    lesions = {}
    for kind in "highway", "prenorm":
        best = result.run(int(table[table["kind"] == kind].iloc[0]["run"]))
        gates = analysis.gate_statistics(model(kind), best.params, TRAIN)
        found = lesions[kind] = analysis.lesion(model(kind), best.params, TRAIN)
        print(f"\n{kind} run {best.run}: an image meets {gates.open_layers.mean():.1f} layers' worth of open gates")
        print(f"training error {found.intact_error:.2%}; without one layer at most {found.error.max():.2%}")
        print(f"{analysis.effective_layers(found.damage):.1f} of {len(found.loss)} layers matter")
    OUT.mkdir(parents=True, exist_ok=True)
    plots.figure4(lesions).savefig(OUT / "lesions.png")
    return result, lesions


if __name__ == "__main__":
    parallel.split_cpu()  # one device per CPU core, each training its share of the runs
    main(*map(int, sys.argv[1:]))

"""Train 200 small networks on one table: which hyperparameters are best, and how well does the best network predict?

    python -m examples.tabular_regression           # 200 runs of 60 epochs
    python -m examples.tabular_regression 20 30     # 20 runs of 30 epochs

The results go to runs/tabular_regression. Kill the program at any time and start it again: it resumes from its last
checkpoint, and its results are exactly those of an uninterrupted run.
"""

import sys
from pathlib import Path

import flax.linen as nn
import optax
from sklearn.datasets import make_friedman1

from highway_jax import Dropout, parallel, population
from highway_jax.population import log_uniform, uniform

OUT = Path("runs/tabular_regression")


class Net(nn.Module):
    """10-64-64-1. The dropout rate differs between runs, which `highway_jax.Dropout` allows and Flax's does not."""

    dropout: float

    @nn.compact
    def __call__(self, x, train):
        for _ in range(2):
            x = Dropout(self.dropout, deterministic=not train)(nn.relu(nn.Dense(64)(x)))
        return nn.Dense(1)(x)[:, 0]


# Friedman's function of ten inputs, five of which have no effect. The noise alone gives a mean absolute error of 0.80.
X, Y = make_friedman1(n_samples=3000, n_features=10, noise=1.0, random_state=0)
MEAN, SCALE = Y[:2000].mean(), Y[:2000].std()
ROWS = {"train": slice(0, 2000), "valid": slice(2000, 2500), "test": slice(2500, 3000)}
DATA = {name: {"x": X[rows], "y": (Y[rows] - MEAN) / SCALE} for name, rows in ROWS.items()}

TASK = population.supervised(
    model=lambda hp: Net(dropout=hp["dropout"]),
    loss=lambda outputs, batch: (outputs - batch["y"]) ** 2,
    optimizer=lambda hp: optax.adamw(hp["lr"], weight_decay=hp["wd"]),
    metrics={"mae": lambda outputs, batch: SCALE * abs(outputs - batch["y"])},  # in the table's own units
)
SPACE = {"lr": log_uniform(1e-4, 1e-1), "wd": log_uniform(1e-5, 1.0), "dropout": uniform(0.0, 0.5)}


def main(num_runs=200, epochs=60):
    """Train all runs, or resume; print and save the results."""
    result = population.fit(
        TASK,
        SPACE,
        train=DATA["train"],
        evaluate={"valid": DATA["valid"], "test": DATA["test"]},
        num_runs=num_runs,
        epochs=epochs,
        batch_size=100,
        rank_by="valid_loss",
        workdir=OUT / "checkpoints",
        checkpoint_every=10,  # epochs; by default checkpoints take about 1 % of the time
    )
    table = result.table().sort_values("rank")
    table.to_csv(OUT / "table.csv", index=False)
    result.plot().savefig(OUT / "curves.png")

    print(table.head(10)[["run", *SPACE, "best_epoch", "best_valid_loss", "best_valid_mae"]].to_string(index=False))
    # The test rows were used to choose neither the run nor the epoch.
    best = table.iloc[0]
    print(f"run {best.run} is best on the validation rows; its test error (MAE) is {best.best_test_mae:.3f}")
    return result


if __name__ == "__main__":
    parallel.split_cpu()  # one device per CPU core, each training its share of the runs
    main(*map(int, sys.argv[1:]))

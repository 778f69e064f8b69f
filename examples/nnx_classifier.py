"""An NNX network with batch normalization on the digits: 20 configurations, five seeds each, then the best one alone.

python -m examples.nnx_classifier           # 100 runs of 20 epochs
python -m examples.nnx_classifier 10 3      # 10 runs (two configurations) of 3 epochs
"""

import sys

import jax
import optax
from flax import nnx

from highway_jax import data, parallel, population
from highway_jax.population import log_uniform, schedules

BATCH_SIZE, SEEDS = 50, 5
DIGITS = data.load("digits")
X, Y = DIGITS.train["x"].reshape(-1, 64) / 16, DIGITS.train["y"]
TRAIN, VALID = {"x": X[:1200], "y": Y[:1200]}, {"x": X[1200:], "y": Y[1200:]}
TEST = {"x": DIGITS.test["x"].reshape(-1, 64) / 16, "y": DIGITS.test["y"]}


class Net(nnx.Module):
    """64-100-100-10 with batch normalization: an ordinary NNX module that knows nothing of populations."""

    def __init__(self, rngs):
        self.hidden = nnx.List([nnx.Linear(n, 100, rngs=rngs) for n in (64, 100)])
        self.norms = nnx.List([nnx.BatchNorm(100, momentum=0.9, rngs=rngs) for _ in range(2)])
        self.output = nnx.Linear(100, 10, rngs=rngs)

    def __call__(self, x):
        for hidden, norm in zip(self.hidden, self.norms, strict=True):
            x = nnx.relu(norm(hidden(x)))
        return self.output(x)


def loss(logits, batch):
    """Cross entropy with label smoothing."""
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(jax.nn.one_hot(batch["y"], 10), 0.1))


def task(epochs):
    """The task; its learning rate rises for the first tenth of the steps and then falls to zero along a cosine."""
    steps = epochs * (len(TRAIN["x"]) // BATCH_SIZE)

    def optimizer(hp):
        # Optax's own schedule does not take a peak that differs between runs.
        rate = schedules.warmup_cosine(0.0, hp["lr"], warmup_steps=steps // 10, decay_steps=steps)
        return optax.adamw(rate, weight_decay=hp["wd"])

    return population.supervised(lambda hp, rngs: Net(rngs), loss, optimizer, {"accuracy": population.accuracy})


SPACE = {"lr": log_uniform(1e-4, 1e-1), "wd": log_uniform(1e-4, 1.0)}


def main(num_runs=100, epochs=20):
    """Train all runs, print the configurations, and use the best run in plain Flax."""
    result = population.fit(
        task(epochs),
        SPACE,
        train=TRAIN,
        evaluate={"valid": VALID, "test": TEST},
        num_runs=num_runs,
        seeds=SEEDS,  # runs of a configuration differ only in initial weights, which all configurations share
        epochs=epochs,
        batch_size=BATCH_SIZE,
        rank_by="valid_accuracy",
        mode="max",
    )
    by_configuration = result.table(by="configuration").sort_values("final_valid_accuracy_mean", ascending=False)
    columns = [f"final_{name}_accuracy_{of}" for name in ("valid", "test") for of in ("mean", "std")]
    print(by_configuration[["configuration", *SPACE, *columns]].head(10).to_string(index=False))

    # The best run outside of the population: an ordinary module with its parameters and batch statistics.
    model = Net(nnx.Rngs(0))
    nnx.update(model, result.best.variables)
    model.eval()
    accuracy = float((model(TEST["x"]).argmax(axis=-1) == TEST["y"]).mean())
    print(f"run {result.best.run}, the best on the validation images, in plain Flax: {accuracy:.2%} of the test images")
    return result, accuracy


if __name__ == "__main__":
    parallel.split_cpu()  # one device per CPU core, each training its share of the runs
    main(*map(int, sys.argv[1:]))

"""Ways to train many small networks at once: ours, and what a user would write instead.

There are two jobs, those of `examples.tabular_regression` and `examples.nnx_classifier`. All contenders use the same
networks, data, losses and hyperparameters, and evaluate every split after every epoch. A contender is a function
`contender(job, tick)` that trains all runs of the job and returns their curves by name, each (runs, epochs). After
every unit of work, once its results are there, the contender calls `tick(pairs)` with the number of (run, epoch) pairs
in the unit, so that `benchmarks.frameworks` can take the time.

Contenders written by hand share `Regression` or `Classifier`, which define one run as functions of arrays. Their
dropout uses `jax.random.bernoulli` (`Net`), as users would write it. Ours uses `highway_jax.Dropout`, which is faster.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from examples import nnx_classifier, tabular_regression
from highway_jax import population
from highway_jax.population import log_uniform, schedules, uniform

Curves = dict[str, np.ndarray]
Tick = Callable[[int], None]


class Job(NamedTuple):
    """The work of a contender.

    Attributes:
      kind: "regression" or "classifier".
      ranges: for each hyperparameter, the lowest value, the highest value, and whether it is log-uniform.
      runs: number of runs.
      epochs: number of epochs.
      data: the splits train, valid and test.
      batch_size: number of examples in a step.
    """

    kind: str
    ranges: dict[str, tuple[float, float, bool]]
    runs: int
    epochs: int
    data: dict[str, Any]
    batch_size: int

    @property
    def steps(self) -> int:
        """Number of steps in an epoch."""
        return len(self.data["train"]["x"]) // self.batch_size

    @property
    def one(self) -> Any:
        """One run, written by hand."""
        return (Regression if self.kind == "regression" else Classifier)(self)


def regression(runs: int, epochs: int) -> Job:
    """The job of `examples.tabular_regression`, which has 200 runs."""
    data = {name: jax.tree.map(np.float32, split) for name, split in tabular_regression.DATA.items()}
    ranges = {"lr": (1e-4, 1e-1, True), "wd": (1e-5, 1.0, True), "dropout": (0.0, 0.5, False)}
    return Job("regression", ranges, runs, epochs, data, 100)


def classifier(runs: int, epochs: int) -> Job:
    """The job of `examples.nnx_classifier`, which has 100 runs."""
    splits = {"train": nnx_classifier.TRAIN, "valid": nnx_classifier.VALID, "test": nnx_classifier.TEST}
    data = {name: {"x": np.float32(split["x"]), "y": split["y"]} for name, split in splits.items()}
    ranges = {"lr": (1e-4, 1e-1, True), "wd": (1e-4, 1.0, True)}
    return Job("classifier", ranges, runs, epochs, data, nnx_classifier.BATCH_SIZE)


# Ours.


def ours_regression(job: Job, tick: Tick) -> Curves:
    """The regression with `population.fit`."""
    task = population.supervised(
        model=lambda hp: tabular_regression.Net(dropout=hp["dropout"]),
        loss=lambda outputs, batch: (outputs - batch["y"]) ** 2,
        optimizer=lambda hp: optax.adamw(hp["lr"], weight_decay=hp["wd"]),
        metrics={"mae": lambda outputs, batch: abs(outputs - batch["y"])},
    )
    result = population.fit(
        task,
        {"lr": log_uniform(1e-4, 1e-1), "wd": log_uniform(1e-5, 1.0), "dropout": uniform(0.0, 0.5)},
        train=job.data["train"],
        evaluate={"valid": job.data["valid"], "test": job.data["test"]},
        num_runs=job.runs,
        epochs=job.epochs,
        batch_size=job.batch_size,
        rank_by="valid_loss",
        progress=lambda progress: progress.step and tick(job.runs),
    )
    return result.curves


def ours_classifier(job: Job, tick: Tick) -> Curves:
    """The classification with `population.fit`."""
    steps = job.epochs * job.steps

    def optimizer(hp):
        rate = schedules.warmup_cosine(0.0, hp["lr"], warmup_steps=steps // 10, decay_steps=steps)
        return optax.adamw(rate, weight_decay=hp["wd"])

    task = population.supervised(
        model=lambda hp, rngs: nnx_classifier.Net(rngs),
        loss=nnx_classifier.loss,
        optimizer=optimizer,
        metrics={"accuracy": population.accuracy},
    )
    result = population.fit(
        task,
        {"lr": log_uniform(1e-4, 1e-1), "wd": log_uniform(1e-4, 1.0)},
        train=job.data["train"],
        evaluate={"valid": job.data["valid"], "test": job.data["test"]},
        num_runs=job.runs,
        seeds=5,
        epochs=job.epochs,
        batch_size=job.batch_size,
        rank_by="valid_accuracy",
        mode="max",
        progress=lambda progress: progress.step and tick(job.runs),
    )
    return result.curves


# Written by hand: one run.


class Net(nn.Module):
    """The network of the regression. It has its own dropout, since Flax's takes no traced rate."""

    rate: Any

    @nn.compact
    def __call__(self, x, train):
        for _ in range(2):
            x = nn.relu(nn.Dense(64)(x))
            if train:
                kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, x.shape)
                x = jnp.where(kept, x / (1 - self.rate), 0)
        return nn.Dense(1)(x)[:, 0]


class Regression:
    """A run of the regression: `init(hp, key)`, `epoch(hp, state, key, data)` and `evaluate(state, split)`."""

    def __init__(self, job: Job):
        self.job = job

    def init(self, hp, key):
        params = Net(hp["dropout"]).init(key, jnp.zeros((1, 10)), train=False)
        return params, optax.adamw(hp["lr"], weight_decay=hp["wd"]).init(params)

    def epoch(self, hp, state, key, data):
        optimizer = optax.adamw(hp["lr"], weight_decay=hp["wd"])
        net = Net(hp["dropout"])

        def step(state, batch):
            params, opt_state = state
            rows, key = batch

            def objective(params):
                outputs = net.apply(params, data["x"][rows], train=True, rngs={"dropout": key})
                errors = outputs - data["y"][rows]
                return (errors**2).mean(), jnp.abs(errors).mean()

            (loss, mae), gradients = jax.value_and_grad(objective, has_aux=True)(params)
            updates, opt_state = optimizer.update(gradients, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), {"loss": loss, "mae": mae}

        order, dropout = key
        steps, size = self.job.steps, self.job.batch_size
        rows = jax.random.permutation(order, len(data["x"]))[: steps * size].reshape(steps, size)
        state, found = lax.scan(step, state, (rows, jax.random.split(dropout, steps)))
        return state, jax.tree.map(jnp.mean, found)

    def evaluate(self, state, split):
        errors = Net(0.0).apply(state[0], split["x"], train=False) - split["y"]
        return {"loss": (errors**2).mean(), "mae": jnp.abs(errors).mean()}


class Classifier:
    """A run of the classification: `init(hp, key)`, `epoch(hp, state, key, data)` and `evaluate(state, split)`."""

    def __init__(self, job: Job):
        self.job = job
        self.graph = nnx.graphdef(nnx_classifier.Net(nnx.Rngs(0)))

    def optimizer(self, hp, count):
        # Optax's warm-up takes no traced peak, so a schedule with peak 1 is scaled by the rate.
        steps = self.job.epochs * self.job.steps
        shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, steps // 10, steps)
        return optax.adamw(hp["lr"] * shape(count), weight_decay=hp["wd"])

    def init(self, hp, key):
        params, stats = nnx.state(nnx_classifier.Net(nnx.Rngs(key)), nnx.Param, nnx.BatchStat)
        return params, stats, self.optimizer(hp, 0).init(params), jnp.int32(0)

    def epoch(self, hp, state, key, data):
        def step(state, rows):
            params, stats, opt_state, count = state

            def objective(params):
                net = nnx.merge(self.graph, params, stats, copy=True)
                net.train()
                batch = {"x": data["x"][rows], "y": data["y"][rows]}
                logits = net(batch["x"])
                accuracy = (logits.argmax(axis=-1) == batch["y"]).mean()
                loss = nnx_classifier.loss(logits, batch).mean()
                return loss, ({"loss": loss, "accuracy": accuracy}, nnx.state(net, nnx.BatchStat))

            (_, (found, stats)), gradients = jax.value_and_grad(objective, has_aux=True)(params)
            updates, opt_state = self.optimizer(hp, count).update(gradients, opt_state, params)
            return (optax.apply_updates(params, updates), stats, opt_state, count + 1), found

        steps, size = self.job.steps, self.job.batch_size
        rows = jax.random.permutation(key[0], len(data["x"]))[: steps * size].reshape(steps, size)
        state, found = lax.scan(step, state, rows)
        return state, jax.tree.map(jnp.mean, found)

    def evaluate(self, state, split):
        net = nnx.merge(self.graph, *state[:2], copy=True)
        net.eval()
        logits = net(split["x"])
        accuracy = (logits.argmax(axis=-1) == split["y"]).mean()
        return {"loss": nnx_classifier.loss(logits, split).mean(), "accuracy": accuracy}


# Written by hand: mapping over runs.


def train_and_evaluate(one: Any, data: Any, run: Any, order: jax.Array) -> Any:
    """Train one run for an epoch, and evaluate it on all splits."""
    hp, state, key = run
    key, dropout = jax.random.split(key)
    state, found = one.epoch(hp, state, (order, dropout), data["train"])
    numbers = {f"train_{name}": value for name, value in found.items()}
    for split in "valid", "test":
        numbers |= {f"{split}_{name}": value for name, value in one.evaluate(state, data[split]).items()}
    return (hp, state, key), numbers


def start(one: Any, key: jax.Array) -> Any:
    """The hyperparameters, initial state and key of a run."""
    init, later, *keys = jax.random.split(key, 2 + len(one.job.ranges))
    hp = {}
    for (name, (low, high, log)), own in zip(one.job.ranges.items(), keys, strict=True):
        ends = (jnp.log(low), jnp.log(high)) if log else (low, high)
        value = jax.random.uniform(own, (), minval=ends[0], maxval=ends[1])
        hp[name] = jnp.exp(value) if log else value
    return hp, one.init(hp, init), later


def loop(job: Job, tick: Tick, program: Any, runs: Any, data: Any) -> Curves:
    """Train all runs, an epoch in each call of `program`."""
    history = []
    for epoch in range(job.epochs):
        runs, numbers = program(data, runs, jax.random.fold_in(jax.random.key(1), epoch))
        history.append(jax.device_get(numbers))
        tick(job.runs)
    return {name: np.stack([numbers[name] for numbers in history], axis=1) for name in history[0]}


def vmap(job: Job, tick: Tick) -> Curves:
    """All runs in lockstep."""
    one = job.one
    runs = jax.jit(jax.vmap(functools.partial(start, one)))(jax.random.split(jax.random.key(0), job.runs))
    program = jax.vmap(functools.partial(train_and_evaluate, one), in_axes=(None, 0, None))
    return loop(job, tick, jax.jit(program, donate_argnums=1), runs, jax.device_put(job.data))


def lax_map(job: Job, tick: Tick) -> Curves:
    """One run after another, inside one compiled program."""
    one = job.one
    runs = jax.jit(jax.vmap(functools.partial(start, one)))(jax.random.split(jax.random.key(0), job.runs))

    def program(data, runs, order):
        return lax.map(lambda run: train_and_evaluate(one, data, run, order), runs)

    return loop(job, tick, jax.jit(program, donate_argnums=1), runs, jax.device_put(job.data))


def shard_map(job: Job, tick: Tick) -> Curves:
    """The runs split over all devices, one after another on each."""
    one = job.one
    mesh = Mesh(np.array(jax.devices()), ("runs",))
    over_runs, whole = PartitionSpec("runs"), PartitionSpec()
    keys = jax.device_put(jax.random.split(jax.random.key(0), job.runs), NamedSharding(mesh, over_runs))
    runs = jax.jit(jax.vmap(functools.partial(start, one)), out_shardings=NamedSharding(mesh, over_runs))(keys)

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(whole, over_runs, whole),
        out_specs=(over_runs, over_runs),
        check_vma=False,  # a scan carries one run's state over batches shared by all
    )
    def program(data, runs, order):
        return lax.map(lambda run: train_and_evaluate(one, data, run, order), runs)

    data = jax.device_put(job.data, NamedSharding(mesh, whole))
    return loop(job, tick, jax.jit(program, donate_argnums=1), runs, data)


# PyTorch.


def torch_network(kind: str) -> Any:
    """The class of the job's networks, which take examples and a run's hyperparameters."""
    import torch
    from torch import nn

    class Regression(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = nn.ModuleList([nn.Linear(10, 64), nn.Linear(64, 64)])
            self.output = nn.Linear(64, 1)

        def forward(self, x, hp):
            for layer in self.hidden:
                x = torch.relu(layer(x))
                if self.training:
                    x = torch.where(torch.rand_like(x) >= hp["dropout"], x / (1 - hp["dropout"]), 0)
            return self.output(x)[:, 0]

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            hidden = [nn.Linear(64, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Linear(100, 100), nn.BatchNorm1d(100)]
            self.layers = nn.Sequential(*hidden, nn.ReLU(), nn.Linear(100, 10))

        def forward(self, x, hp):
            return self.layers(x)

    return Regression if kind == "regression" else Classifier


def torch_numbers(kind: str, outputs: Any, batch: Any) -> Any:
    """The loss and the other metric of a batch."""
    from torch.nn import functional

    if kind == "regression":
        errors = outputs - batch["y"]
        return {"loss": errors.square().mean(), "mae": errors.abs().mean()}
    loss = functional.cross_entropy(outputs, batch["y"], label_smoothing=0.1)
    return {"loss": loss, "accuracy": (outputs.argmax(dim=-1) == batch["y"]).float().mean()}


def torch_adamw(params: Any, gradients: Any, moments: Any, count: int, rate: Any, decay: Any) -> None:
    """Step number `count`, from 1, of AdamW, in place. Rates and decays are (runs,); PyTorch's AdamW takes scalars."""
    for name, param in params.items():
        gradient, (first, second) = gradients[name], moments[name]
        wide = (-1, *(1 for _ in param.shape[1:]))
        first.lerp_(gradient, 0.1)
        second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        root = second.sqrt().div_(math.sqrt(1 - 0.999**count)).add_(1e-8)
        param.mul_((1 - rate * decay).view(wide))
        param.sub_((first / root).mul_((rate / (1 - 0.9**count)).view(wide)))


def torch_vmap(job: Job, tick: Tick) -> Curves:
    """All runs in lockstep, by `torch.func.vmap` of a run's gradient."""
    import torch
    from torch.func import functional_call, grad, stack_module_state, vmap

    torch.manual_seed(0)
    network = torch_network(job.kind)
    net = network()
    params, buffers = stack_module_state([network() for _ in range(job.runs)])
    params = {name: param.detach() for name, param in params.items()}
    moments = {name: (torch.zeros_like(param), torch.zeros_like(param)) for name, param in params.items()}
    hp = {}
    for name, (low, high, log) in job.ranges.items():
        low, high = (math.log(low), math.log(high)) if log else (low, high)
        value = low + (high - low) * torch.rand(job.runs)
        hp[name] = value.exp() if log else value
    kinds = {"x": torch.float32, "y": torch.float32 if job.kind == "regression" else torch.long}
    data = {
        split: {name: torch.tensor(leaf, dtype=kinds[name]) for name, leaf in of.items()}
        for split, of in job.data.items()
    }

    def measured(params, buffers, hp, batch):
        numbers = torch_numbers(job.kind, functional_call(net, (params, buffers), (batch["x"], hp)), batch)
        return numbers["loss"], numbers

    gradient = vmap(grad(measured, has_aux=True), in_dims=(0, 0, 0, None), randomness="different")
    evaluate = vmap(measured, in_dims=(0, 0, 0, None))

    def scale(count):
        """The factor of the learning rates: for the classifier, a warm-up and a cosine decay."""
        if job.kind == "regression":
            return 1.0
        steps = job.epochs * job.steps
        warm = steps // 10
        return count / warm if count < warm else (1 + math.cos(math.pi * (count - warm) / (steps - warm))) / 2

    count, history = 0, []
    for _ in range(job.epochs):
        net.train()
        found = []
        order = torch.randperm(len(data["train"]["x"]))[: job.steps * job.batch_size]
        for rows in order.view(job.steps, job.batch_size):
            batch = {name: leaf[rows] for name, leaf in data["train"].items()}
            gradients, numbers = gradient(params, buffers, hp, batch)
            torch_adamw(params, gradients, moments, count + 1, hp["lr"] * scale(count), hp["wd"])
            count += 1
            found.append(numbers)
        numbers = {f"train_{name}": torch.stack([one[name] for one in found]).mean(dim=0) for name in found[0]}
        net.eval()
        for split in "valid", "test":
            _, found = evaluate(params, buffers, hp, data[split])
            numbers |= {f"{split}_{name}": value for name, value in found.items()}
        history.append({name: value.numpy() for name, value in numbers.items()})
        tick(job.runs)
    return {name: np.stack([numbers[name] for numbers in history], axis=1) for name in history[0]}


# Other libraries.


def optuna(job: Job, tick: Tick) -> Curves:
    """One run after another, each a trial of a study, with one compiled program for an epoch."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    one, data = job.one, jax.device_put(job.data)
    program = jax.jit(functools.partial(train_and_evaluate, one), donate_argnums=1)
    init = jax.jit(one.init)

    def objective(trial):
        ranges = job.ranges.items()
        hp = {name: trial.suggest_float(name, low, high, log=log) for name, (low, high, log) in ranges}
        key, later = jax.random.split(jax.random.key(trial.number))
        run, history = (jax.tree.map(jnp.float32, hp), init(hp, key), later), []
        for epoch in range(job.epochs):
            run, numbers = program(data, run, jax.random.fold_in(jax.random.key(1), epoch))
            history.append({name: float(value) for name, value in numbers.items()})
        trial.set_user_attr("curves", history)
        tick(job.epochs)
        return min(numbers["valid_loss"] for numbers in history)

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=job.runs)
    curves = [trial.user_attrs["curves"] for trial in study.trials]
    return {name: np.array([[numbers[name] for numbers in curve] for curve in curves]) for name in curves[0][0]}


def hyperoptax(job: Job, tick: Tick) -> Curves:
    """The whole job in one call, which returns one number per run: the final validation loss."""
    from hyperoptax import LinearSpace, LogSpace, RandomSearch

    one, data = job.one, jax.device_put(job.data)
    ranges = job.ranges.items()
    space = {name: (LogSpace if log else LinearSpace)(low, high) for name, (low, high, log) in ranges}

    @jax.jit
    def train(key, hp):
        init, later = jax.random.split(key)

        def epoch(run, order):
            run, numbers = train_and_evaluate(one, data, run, order)
            return run, numbers["valid_loss"]

        orders = jax.random.split(jax.random.key(1), job.epochs)
        return lax.scan(epoch, (hp, one.init(hp, init), later), orders)[1][-1]

    state, optimizer = RandomSearch.init(space, n_parallel=job.runs)
    losses = None
    for repetition in range(2):  # the first one compiles
        state, (_, losses) = optimizer.optimize(state, jax.random.key(repetition), train, n_iterations=1)
        jax.block_until_ready(losses)
        tick(job.runs * job.epochs)
    return {"valid_loss": np.stack(losses, axis=1)}


def turbanet(job: Job, tick: Tick) -> Curves:
    """A smaller job: all runs share one learning rate and weight decay, and there is no dropout.

    TurbaNet has one optimizer for all runs, passes no random key to losses, and keeps no batch statistics.
    """
    from turbanet import TurbaTrainState

    if job.kind == "classifier":
        raise NotImplementedError("TurbaNet trains only parameters and has no place for batch statistics")

    def measured(params, x, y, apply):
        errors = apply({"params": params}, x) - y
        return (errors**2).mean(), jnp.abs(errors).mean()

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(2):
                x = nn.relu(nn.Dense(64)(x))
            return nn.Dense(1)(x)[:, 0]

    optimizer = optax.adamw(1e-2, weight_decay=1e-3)
    swarm = TurbaTrainState.swarm(Net(), optimizer, job.runs, job.data["train"]["x"][:1])
    rng, history = np.random.default_rng(0), []

    def everyone(array):
        return np.broadcast_to(array, (job.runs, *array.shape))

    for _ in range(job.epochs):
        found = []
        for rows in rng.permutation(len(job.data["train"]["x"])).reshape(job.steps, job.batch_size):
            batch = jax.tree.map(lambda leaf, rows=rows: everyone(leaf[rows]), job.data["train"])
            swarm, loss, mae = swarm.train(batch["x"], batch["y"], measured)
            found.append((loss, mae))
        numbers = dict(zip(("train_loss", "train_mae"), np.mean(found, axis=0), strict=True))
        for split in "valid", "test":
            examples = jax.tree.map(everyone, job.data[split])
            found = swarm.evaluate(examples["x"], examples["y"], measured)
            numbers |= {f"{split}_loss": np.asarray(found[0]), f"{split}_mae": np.asarray(found[1])}
        history.append(numbers)
        tick(job.runs)
    return {name: np.stack([numbers[name] for numbers in history], axis=1) for name in history[0]}

"""Time the paper's convolutional networks against PyTorch: images per second in training.

    pip install -e '.[bench]'
    python -m benchmarks.convnet --networks=mnist_conv16,cifar10_gap

--networks=NAME,...  by default the six networks of Tables 1 to 3
--batch=N            images per step
--steps=N            steps per repetition
--repetitions=N      repetitions of each contender, interleaved; the median counts
--runs=N             runs of the contender ours_runs

Contenders: ours, ours with XLA alone (ours_xla), several runs in lockstep (ours_runs), and torch. Each runs in its own
process, uses the whole machine, and trains on random images, with dropout and weight decay. Writes
benchmarks/results/convnet_PLATFORM_NAME.json.
"""

import functools
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from absl import flags

from benchmarks.work import PRECISIONS
from experiments.app import command_line, entry
from experiments.app.errors import UserError
from experiments.app.machine import hardware
from experiments.configs import loading

NETWORKS = "mnist_conv16", "mnist_conv32", "cifar10_highway_a", "cifar10_highway_b", "cifar10_highway_c", "cifar10_gap"
SIZES = {"mnist": (28, 1), "cifar10": (32, 3)}  # of the images: pixels per side, channels
RATE, MOMENTUM, DECAY, BIAS = 0.01, 0.9, 0.001, -2.0


def size_of(name: str) -> tuple[int, int]:
    """Pixels per side and channels of a network's images."""
    return SIZES[name.split("_")[0]]


def images(name: str, batch: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (steps, batch, height, width, channels) and labels; random, since only their size matters."""
    size, channels = size_of(name)
    rng = np.random.default_rng(0)
    return rng.standard_normal((steps, batch, size, size, channels)).astype(np.float32), rng.integers(
        0, 10, (steps, batch)
    )


def ours(
    name: str, batch: int, steps: int, runs: int = 1, precision: str = "float32", implementation: str | None = None
) -> Callable[[], None]:
    """An epoch of `steps` steps, as `experiments.train` runs it; several runs are trained in lockstep.

    Products and convolutions have the precision given, one of `work.PRECISIONS`. By default, our own kernels compute
    the convolutions on a CPU.
    """
    import jax

    from highway_jax import ConvNet, population
    from highway_jax.population import run
    from highway_jax.zoo import optim

    stages = loading.load(name, {}).config.stages
    chosen = implementation or ("fused" if jax.default_backend() == "cpu" else "xla")
    task = population.supervised(
        lambda hp: ConvNet(stages, transform_bias=BIAS, implementation=chosen),
        population.cross_entropy,
        lambda hp: optim.nesterov(RATE, MOMENTUM, DECAY),
    )
    batches = jax.device_put(dict(zip("xy", images(name, batch, steps), strict=True)))
    first = {name: array[0] for name, array in batches.items()}
    keys = jax.random.split(jax.random.key(0, impl=run.PRNG), runs)
    members = jax.vmap(lambda key: run.start(task, {}, key, first))(keys)
    one = functools.partial(run.train_epoch, task)
    if runs == 1:
        members = jax.tree.map(lambda leaf: leaf[0], members)
    epoch = jax.jit(one if runs == 1 else jax.vmap(one, in_axes=(0, None)), donate_argnums=0)

    def go() -> None:
        nonlocal members
        with jax.default_matmul_precision(PRECISIONS[precision]):
            members, metrics = epoch(members, batches)
        jax.block_until_ready(metrics)

    return go


def torch(name: str, batch: int, steps: int, precision: str = "float32") -> Callable[[], None]:
    """The same network as a PyTorch user writes it, with channels last, the fastest layout.

    Products and convolutions are in float32 or in TF32 ("tf32"), PyTorch's default for convolutions.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    from highway_jax.zoo import stages

    class Highway(nn.Module):
        def __init__(self, channels: int, window: tuple[int, int]):
            super().__init__()
            self.h, self.t = (nn.Conv2d(channels, channels, window, padding="same") for _ in "ht")
            nn.init.constant_(self.t.bias, BIAS)

        def forward(self, x):
            return torch.lerp(x, torch.relu(self.h(x)), torch.sigmoid(self.t(x)))

    channels, layers = size_of(name)[1], []
    for stage in map(stages.parse, loading.load(name, {}).config.stages):
        match stage:
            case stages.Dropout(rate):
                layers.append(nn.Dropout(rate))
            case stages.MaxPool(window, stride):
                layers.append(nn.MaxPool2d(window, stride, ceil_mode=True))
            case stages.AvgPool(window, stride):
                layers.append(nn.AvgPool2d(window, stride))
            case stages.Conv(features, window):
                layers += [nn.Conv2d(channels, features, window, padding="valid" if stage.valid else "same"), nn.ReLU()]
                channels = features
            case stages.Highway(window):
                layers += [Highway(channels, window) for _ in range(stage.count)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(10))
    inputs, labels = images(name, batch, steps)
    x, y = torch.from_numpy(np.moveaxis(inputs, -1, 2).copy()), torch.from_numpy(labels)
    model(x[0])  # the lazy layer infers its size
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    model = model.to(device, memory_format=torch.channels_last)
    x, y = [images.to(device, memory_format=torch.channels_last) for images in x], y.to(device)
    optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM, weight_decay=DECAY, nesterov=True)

    def go() -> None:
        for batch_x, batch_y in zip(x, y, strict=True):
            optimizer.zero_grad()
            functional.cross_entropy(model(batch_x), batch_y).backward()
            optimizer.step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return go


def contenders(runs: int) -> dict[str, tuple[Callable[..., Callable[[], None]], int]]:
    """The function that builds each contender, and how many runs it trains."""
    return {
        "ours": (ours, 1),
        "ours_xla": (functools.partial(ours, implementation="xla"), 1),
        "ours_runs": (functools.partial(ours, runs=runs), runs),
        "torch": (torch, 1),
    }


def serve(connection: Connection, contender: str, runs: int, name: str, batch: int, steps: int) -> None:
    """A contender's process: warm up, then repeat on request."""
    go = contenders(runs)[contender][0](name, batch, steps)
    start = time.perf_counter()
    go()
    connection.send(time.perf_counter() - start)
    while connection.recv():
        start = time.perf_counter()
        go()
        connection.send(time.perf_counter() - start)


def measure(name: str, batch: int, steps: int, repetitions: int, runs: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Images per second and the seconds of the first call, for each contender.

    Raises:
      UserError: if a contender cannot be started.
    """
    context = multiprocessing.get_context("spawn")
    connections, rates, first = {}, {}, {}
    for contender in contenders(runs):
        connection, theirs = context.Pipe()
        args = (theirs, contender, runs, name, batch, steps)
        context.Process(target=serve, args=args, daemon=True).start()
        theirs.close()
        connections[contender], rates[contender] = connection, []
        try:
            first[contender] = connection.recv()
        except EOFError as error:
            raise UserError(f"{contender} could not be started; for PyTorch: pip install -e '.[bench]'") from error
    for _ in range(repetitions):
        for contender, connection in connections.items():
            connection.send(True)
            rates[contender].append(contenders(runs)[contender][1] * batch * steps / connection.recv())
    for contender, connection in connections.items():
        connection.send(False)
        found = rates[contender]
        median = {"median": statistics.median(found), "min": min(found), "max": max(found)}
        yield contender, {**median, "first_seconds": first[contender]}


def main(argv: list[str]) -> None:
    """Time all contenders, print the results, and write the JSON files."""
    values = flags.FlagValues()
    flags.DEFINE_list("networks", list(NETWORKS), "names", flag_values=values)
    for flag, default in {"batch": 100, "steps": 5, "repetitions": 5, "runs": 4}.items():
        flags.DEFINE_integer(flag, default, flag, lower_bound=1, flag_values=values)
    command_line.parse_flags(argv, values)
    if unknown := set(values.networks) - set(NETWORKS):
        raise UserError(f"--networks has {min(unknown)!r}; it must be some of {', '.join(NETWORKS)}")
    import jax

    for name in values.networks:
        result = {"network": name, "batch": values.batch, "runs": values.runs, "images_per_second": {}}
        for contender, found in measure(name, values.batch, values.steps, values.repetitions, values.runs):
            print(
                f"{name} {contender}: {found['median']:.0f} images/s ({found['min']:.0f} to {found['max']:.0f}), "
                f"first call {found['first_seconds']:.1f} s"
            )
            result["images_per_second"][contender] = found
        path = Path(__file__).parent / "results" / f"convnet_{jax.default_backend()}_{name}.json"
        path.write_text(json.dumps(result | {"hardware": hardware()}, indent=2) + "\n")


if __name__ == "__main__":
    entry.run(main, __doc__)

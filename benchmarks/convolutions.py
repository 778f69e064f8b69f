"""Time the convolutions of the paper's networks by shape: GFLOP/s of each pass with our kernels, XLA and PyTorch.

    pip install -e '.[bench]'
    python -m benchmarks.convolutions

--batch=N          images in a batch
--threads=N        threads of each contender; by default all cores
--repetitions=N    repetitions of each pass, interleaved between contenders; the median counts

Each contender runs in its own process. The passes are the convolution and its gradients with respect to the images and
the kernel. Writes benchmarks/results/convolutions_cpu.json.
"""

import functools
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from absl import flags

from experiments.app import command_line, entry
from experiments.app.machine import hardware
from highway_jax.parallel import cpu_cores

# Pixels per side, channels, window, features, as in the networks for MNIST and in highway_a, b, c and gap.
SHAPES = (
    (28, 1, 5, 16), (12, 16, 3, 16), (12, 32, 3, 32), (6, 16, 3, 16), (32, 3, 3, 32), (32, 16, 3, 16), (32, 32, 3, 32),
    (32, 32, 1, 32), (16, 64, 1, 64), (16, 80, 3, 80), (8, 96, 3, 96), (8, 128, 3, 128), (8, 128, 1, 100),
)  # fmt: skip
PASSES = "forward", "images", "kernel"
Pass = Callable[[], object]


def arrays(batch: int, pixels: int, channels: int, window: int, features: int) -> list[np.ndarray]:
    """Images, a kernel and cotangents; windows of 5 have no padding, as in the networks for MNIST."""
    random = np.random.default_rng(0)
    out = pixels - 4 if window == 5 else pixels
    shapes = (batch, pixels, pixels, channels), (window, window, channels, features), (batch, out, out, features)
    return [random.standard_normal(shape).astype(np.float32) for shape in shapes]


def ours(implementation: str, *shape: int) -> dict[str, Pass]:
    """The passes by `conv` with the implementation given."""
    import jax

    from highway_jax.functional.convolution import conv

    x, kernel, dy = map(jax.device_put, arrays(*shape))
    padding = "VALID" if shape[3] == 5 else "SAME"
    run = functools.partial(conv, window_strides=(1, 1), padding=padding, implementation=implementation)
    functions = {
        "forward": jax.jit(run),
        "images": jax.jit(lambda x, kernel: jax.vjp(lambda x: run(x, kernel), x)[1](dy)),
        "kernel": jax.jit(lambda x, kernel: jax.vjp(lambda kernel: run(x, kernel), kernel)[1](dy)),
    }
    return {
        name: lambda function=function: jax.block_until_ready(function(x, kernel))
        for name, function in functions.items()
    }


def torch(threads: int, *shape: int) -> dict[str, Pass]:
    """The passes by PyTorch with channels last."""
    import torch

    torch.set_num_threads(threads)
    x, kernel, dy = map(torch.from_numpy, arrays(*shape))
    x, dy = x.permute(0, 3, 1, 2), dy.permute(0, 3, 1, 2)  # a view; in memory, channels are last
    kernel = kernel.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
    padding = [0, 0] if shape[3] == 5 else [shape[3] // 2] * 2

    def gradient(images: bool) -> object:
        sizes = [1, 1], padding, [1, 1], False, [0, 0], 1
        return torch.ops.aten.convolution_backward(dy, x, kernel, None, *sizes, [images, not images, False])

    return {
        "forward": lambda: torch.conv2d(x, kernel, padding=padding),
        "images": lambda: gradient(True),
        "kernel": lambda: gradient(False),
    }


def serve(connection: Connection, contender: str, threads: int, batch: int) -> None:
    """A contender's process: runs a pass of a shape on request, and sends the seconds."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    build = functools.partial(torch, threads) if contender == "torch" else functools.partial(ours, contender)
    passes: dict[str, Pass] = {}
    shape = None
    while (asked := connection.recv()) is not None:
        if asked[0] != shape:
            shape, passes = asked[0], build(batch, *asked[0])
            for go in passes.values():
                go()
        start = time.perf_counter()
        passes[asked[1]]()
        connection.send(time.perf_counter() - start)


def main(argv: list[str]) -> None:
    """Time all contenders, print the results, and write the JSON file."""
    values = flags.FlagValues()
    for flag, default in {"batch": 100, "threads": cpu_cores(), "repetitions": 9}.items():
        flags.DEFINE_integer(flag, default, flag, lower_bound=1, flag_values=values)
    command_line.parse_flags(argv, values)
    context = multiprocessing.get_context("spawn")
    connections = {}
    for contender in "fused", "xla", "torch":
        connections[contender], theirs = context.Pipe()
        args = (theirs, contender, values.threads, values.batch)
        context.Process(target=serve, args=args, daemon=True).start()
        theirs.close()
    rows = []
    for shape in SHAPES:
        _, kernel, dy = arrays(values.batch, *shape)
        flops = 2 * dy.size * kernel.size / kernel.shape[-1]
        for name in PASSES:
            seconds: dict[str, list[float]] = {contender: [] for contender in connections}
            for _ in range(values.repetitions):
                for contender, connection in connections.items():
                    connection.send((shape, name))
                    seconds[contender].append(connection.recv())
            rates = {contender: flops / statistics.median(found) / 1e9 for contender, found in seconds.items()}
            print(shape, name, *(f"{contender} {rate:.0f}" for contender, rate in rates.items()), flush=True)
            rows.append({"shape": shape, "pass": name, "gflops": rates})
    for connection in connections.values():
        connection.send(None)
    result = {"batch": values.batch, "threads": values.threads, "rows": rows, "hardware": hardware()}
    path = Path(__file__).parent / "results/convolutions_cpu.json"
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    entry.run(main, __doc__)

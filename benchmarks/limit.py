"""Measure the machine's limits: the rates of a large matrix product and of a large copy."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.work import PRECISIONS


def gemm_flops(size: int | None = None, repetitions: int = 5, precision: str = "float32") -> float:
    """Floating-point operations per second of a large product of float32 arrays.

    On a CPU this is the best of NumPy, JAX and PyTorch. On an accelerator it is JAX's rate. JAX's products have the
    precision given, one of `work.PRECISIONS`.
    """
    size = size or (2048 if jax.default_backend() == "cpu" else 8192)
    a = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    products: list[Callable[[], object]] = []
    on_device = jnp.asarray(a)
    product = jax.jit(lambda a: jnp.matmul(a, a, precision=PRECISIONS[precision]))
    products.append(lambda: product(on_device).block_until_ready())
    if jax.default_backend() == "cpu":
        products.append(lambda: a @ a)
        try:
            import torch
        except ImportError:
            pass
        else:
            tensor = torch.from_numpy(a)
            products.append(lambda: tensor @ tensor)
    return 2 * size**3 / min(_fastest(function, repetitions) for function in products)


def copy_bytes(repetitions: int = 5) -> float:
    """Bytes per second that a large copy on the device reads and writes."""
    array = jnp.zeros(2**26 if jax.default_backend() == "cpu" else 2**29, jnp.float32)
    copy = jax.jit(lambda a: a + 1)
    return 2 * array.nbytes / _fastest(lambda: copy(array).block_until_ready(), repetitions)


def _fastest(function: Callable[[], object], repetitions: int) -> float:
    function()
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)

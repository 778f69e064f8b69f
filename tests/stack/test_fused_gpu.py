"""The GPU's kernel computes what XLA computes: its source, built for a CPU with an emulator in place of CUDA.

The emulator runs a block's threads in turns, from barrier to barrier, and makes asynchronous copies as late as it may.
On a machine with such a GPU the kernel itself is tested too.
"""

import ctypes
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax import lax

from highway_jax.functional.activations import RELU, TANH
from highway_jax.native import COMPILERS, Library, NoCompiler
from highway_jax.stack import fused, stack
from highway_jax.stack.kinds import HIGHWAY, PLAIN

EMULATOR = Path(__file__).parent / "emulated_cuda"


@pytest.fixture(scope="module")
def emulated():
    """The kernel's functions, computed by the emulator."""
    source = Path(fused.__file__).with_suffix(".cu")
    headers = b"".join(path.read_bytes() for path in sorted(EMULATOR.iterdir()))
    options = "-x", "c++", "-std=c++17", "-O2", "-fPIC", "-w", f"-I{EMULATOR}"
    try:
        library = ctypes.CDLL(str(Library(source, fused.HANDLERS, "cpu", COMPILERS, options, headers).path()))
    except NoCompiler as error:
        pytest.skip(str(error))
    for name in fused.HANDLERS:
        jax.ffi.register_ffi_target(f"emulated_{name}", jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    call = fused._call
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "_call", lambda name, *args: call(f"emulated_{name}", *args))
        yield


def arrays(seed, runs, layers, batch, width, parts):
    random = np.random.default_rng(seed)
    shapes = (batch, width), (layers, width, parts * width), (layers, parts * width), (batch, width)
    x, kernel, bias, dy = (random.normal(size=(runs, *shape)).astype(np.float32) for shape in shapes)
    return x, kernel / np.sqrt(width, dtype=np.float32), bias, dy


@jax.jit
@jax.vmap
def by_the_kernel(x, kernel, bias, index, dy):
    y, kept = fused.forward(fused.GPU, x, kernel, bias, index)
    return (
        y,
        *fused.backward(fused.GPU, dy, kernel, index, kept),
        fused.forward(fused.GPU, x, kernel, bias, index, keep=False)[0],
    )


@functools.partial(jax.jit, static_argnums=0)
def by_xla(kind, *arguments):
    def one(x, kernel, bias, index, dy):
        y, pullback = jax.vjp(lambda *args: stack(kind, *args, index), x, kernel, bias)
        return y, *pullback(dy), y

    return jax.vmap(one)(*arguments)


SHAPES = given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 140),
    st.integers(1, fused.WIDEST[fused.GPU]),
    st.sampled_from([HIGHWAY, PLAIN]),
)


@settings(max_examples=12)
@example(0, 2, 3, 100, 50, HIGHWAY)
@example(0, 2, 3, 100, 71, PLAIN)
@example(0, 1, 2, 257, fused.WIDEST[fused.GPU], HIGHWAY)
@example(0, 1, 2, 257, fused.WIDEST[fused.GPU], PLAIN)
@SHAPES
def test_it_is_what_xla_computes(emulated, seed, runs, layers, batch, width, kind):
    *args, dy = arrays(seed, runs, layers, batch, width, 1 + (kind is HIGHWAY))
    index = np.random.default_rng(seed).integers(0, 2, runs).astype(np.int32)
    for ours, reference in zip(by_the_kernel(*args, index, dy), by_xla(kind, *args, index, dy), strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-5 * np.abs(reference).max())


@pytest.mark.parametrize("layers", [0, 1, 9, 11])
@pytest.mark.parametrize("remat", [False, True])
def test_a_stack_of_any_depth_takes_it(emulated, layers, remat, monkeypatch):
    x, kernel, bias, dy = (leaf[0] for leaf in arrays(0, 1, layers, 5, 7, 2))

    def gradients(implementation):
        run = functools.partial(stack, HIGHWAY, activation=TANH, remat=remat, implementation=implementation)
        y, pullback = jax.vjp(lambda x, kernel, bias: run(x, kernel, bias), x, kernel, bias)
        return y, *pullback(dy)

    reference = gradients("xla")
    monkeypatch.setattr(fused, "usable", lambda platform, width: True)
    monkeypatch.setattr(lax, "platform_dependent", lambda *args, cuda, **others: cuda(*args))
    for ours, theirs in zip(gradients("fused"), reference, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("index", [RELU, TANH])
@pytest.mark.parametrize("kind", [HIGHWAY, PLAIN])
def test_activations_and_gates_hold_from_the_smallest_to_the_largest_and_hand_nan_on(emulated, index, kind):
    # Layers without an input: what they give is their bias's activation, through their bias's gate.
    sizes = np.concatenate([np.logspace(-38, 38, 77), np.linspace(80, 100, 41), [np.inf, np.nan]])
    biases = np.concatenate([sizes, -sizes]).astype(np.float32)
    runs, parts = len(biases), 1 + (kind is HIGHWAY)
    x, kernel, _, dy = np.zeros((runs, 4, 1)), np.zeros((runs, 1, 1, parts)), None, np.ones((runs, 4, 1))
    bias = np.repeat(biases, parts).reshape(runs, 1, parts)
    args = [np.asarray(a, np.float32) for a in (x, kernel, bias)]
    index, dy = np.full(runs, index, np.int32), dy.astype(np.float32)
    ours, reference = by_the_kernel(*args, index, dy), by_xla(kind, *args, index, dy)
    for a, b in zip(ours, reference, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=5e-6)


@pytest.mark.skipif(fused.here() != fused.GPU, reason="needs an NVIDIA GPU")
@settings(max_examples=12)
@example(0, 100, 20, 100, 50, HIGHWAY)
@SHAPES
def test_a_gpu_computes_it(seed, runs, layers, batch, width, kind):
    fused.load(fused.GPU)
    *args, dy = map(jnp.asarray, arrays(seed, runs, layers, batch, width, 1 + (kind is HIGHWAY)))
    index = jnp.arange(runs, dtype=jnp.int32) % 2
    for ours, reference in zip(by_the_kernel(*args, index, dy), by_xla(kind, *args, index, dy), strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-5 * np.abs(reference).max())

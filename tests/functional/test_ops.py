import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from highway_jax import highway
from highway_jax.functional.ops import explicit_highway, resize

shapes = st.lists(st.integers(1, 5), max_size=4).map(tuple)


def arrays(shape, seed, count):
    rng = np.random.default_rng(seed)
    values = [rng.normal(size=shape) for _ in range(count)]
    return [*values[:2], *(1 / (1 + np.exp(-v)) for v in values[2:])]  # x, h, then gates


@settings(max_examples=25)
@given(shape=shapes, seed=st.integers(0, 2**31), independent=st.booleans())
def test_values_and_gradients_agree_with_a_float64_reference_of_equations_2_and_9(shape, seed, independent):
    args = arrays(shape, seed, 4 if independent else 3)
    dy = np.random.default_rng(seed + 1).normal(size=shape)
    x, h, t, c = args if independent else (*args, 1 - args[2])
    y = h * t + x * c
    gradients = [c * dy, t * dy, h * dy, x * dy] if independent else [(1 - t) * dy, t * dy, (h - x) * dy]

    value, vjp = jax.vjp(highway, *(jnp.float32(a) for a in args))
    np.testing.assert_allclose(value, y, rtol=1e-5, atol=1e-5)
    for ours, reference in zip(vjp(jnp.float32(dy)), gradients, strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-5, atol=1e-5)


@settings(max_examples=6)
@given(shape=shapes, seed=st.integers(0, 2**31), independent=st.booleans())
def test_gradients_agree_with_finite_differences(shape, seed, independent):
    with jax.enable_x64(True):  # finite differences of second order need the digits
        args = [jnp.float64(a) for a in arrays(shape, seed, 4 if independent else 3)]
        check_grads(highway, args, order=2, modes=["fwd", "rev"], atol=1e-5, rtol=1e-5)


def test_closed_gate_carries_and_open_gate_transforms_exactly():
    x, h = jnp.array([0.1, -3.0, 1e30]), jnp.array([7.0, 0.3, -1.0])
    np.testing.assert_array_equal(highway(x, h, jnp.zeros(3)), x)
    np.testing.assert_array_equal(highway(x, h, jnp.ones(3)), h)


@pytest.mark.parametrize("operation", [highway, explicit_highway])
def test_backward_keeps_only_what_equation_9_needs(operation):
    x, h, t, c = (jnp.full((7, 11), v) for v in (1.0, 2.0, 0.5, 0.25))
    for args in (x, h, t), (x, h, t, c):
        kept = jax.tree.leaves(jax.vjp(operation, *args)[1])
        assert sum(leaf.size for leaf in kept) <= len(args) * x.size


def test_dtypes_promote_and_gradients_keep_their_own():
    x, h, t = jnp.ones(3, jnp.bfloat16), jnp.ones(3, jnp.float32), jnp.ones(3, jnp.bfloat16)
    assert highway(x, h, t).dtype == jnp.float32
    assert [g.dtype for g in jax.grad(lambda *a: highway(*a).sum(), (0, 1, 2))(x, h, t)] == [x.dtype, h.dtype, t.dtype]


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"one shape.*x \(2, 3\), h \(2, 3\), t \(3,\)"):
        highway(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.ones(3))


@pytest.mark.parametrize(("n", "features"), [(7, 3), (70_000, 40_000)])
def test_features_are_sub_sampled_evenly_however_many_there_are(n, features):
    kept = resize(jnp.arange(n)[None], features)[0]
    np.testing.assert_array_equal(kept, [i * n // features for i in range(features)])

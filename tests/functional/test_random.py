"""Random numbers are JAX's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from highway_jax import Dropout
from highway_jax.functional.random import bernoulli


@settings(max_examples=15)
@given(
    st.integers(0, 2**32 - 1),
    st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1, width=32)),
    st.lists(st.integers(0, 9), max_size=4).map(tuple),
)
def test_they_are_jaxs_number_for_number(seed, p, shape):
    key = jax.random.key(seed)
    np.testing.assert_array_equal(bernoulli(key, jnp.float32(p), shape), jax.random.bernoulli(key, p, shape))


@pytest.mark.parametrize("key", [jax.random.PRNGKey(1), jax.random.key(1, impl="rbg")], ids=["old", "rbg"])
def test_other_keys_draw_what_jax_draws_with_them(key):
    np.testing.assert_array_equal(bernoulli(key, jnp.float32(0.3), (50,)), jax.random.bernoulli(key, 0.3, (50,)))


def test_they_may_be_mapped_over_keys_and_probabilities():
    keys, p = jax.random.split(jax.random.key(2), 3), jnp.linspace(0, 1, 3)
    ours, theirs = (jax.vmap(lambda key, p, f=f: f(key, p, (7, 5)))(keys, p) for f in (bernoulli, jax.random.bernoulli))
    np.testing.assert_array_equal(ours, theirs)


def test_a_mask_is_drawn_once_whatever_it_is_used_for():
    """XLA would draw again for each use what is no loop."""

    def loss(x, key):
        return jnp.where(bernoulli(key, jnp.float32(0.5), x.shape), x * x, 0).sum()

    text = jax.jit(jax.value_and_grad(loss)).lower(jnp.ones((8, 9)), jax.random.key(0)).compile().as_text()
    assert text.count(" while(") == 1 or jax.default_backend() != "cpu"


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("rate", [0.3, np.float32(0.3), 0])
def test_dropout_drops_the_units_that_flaxs_does_whatever_floats_are_by_default(rate, x64):
    with jax.enable_x64(x64):
        x, rngs = jnp.ones((7, 50), jnp.float32), {"dropout": jax.random.key(3)}
        ours, theirs = (net(rate, deterministic=False).apply({}, x, rngs=rngs) for net in (Dropout, nn.Dropout))
        np.testing.assert_array_equal(ours == 0, theirs == 0)

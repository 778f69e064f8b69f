"""Typed random keys in trees, and their data, which can be stored and copied to the host like any other array."""

from collections.abc import Sequence
from typing import Any

import jax


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of typed random keys."""
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def implementations(tree: Any) -> list[Any]:
    """Of each leaf that is an array of random keys their implementation, of others None."""
    return [jax.random.key_impl(leaf) if is_key(leaf) else None for leaf in jax.tree.leaves(tree)]


def to_data(tree: Any) -> Any:
    """A tree with its random keys' data in their place: uint32, with one more axis."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, tree)


def from_data(found: Sequence[Any], tree: Any) -> Any:
    """The inverse, given the `implementations` of the tree that there was."""
    leaves, structure = jax.tree.flatten(tree)
    pairs = zip(leaves, found, strict=True)
    typed = [leaf if i is None else jax.random.wrap_key_data(leaf, impl=i) for leaf, i in pairs]
    return jax.tree.unflatten(structure, typed)

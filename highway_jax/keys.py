"""Conversion of typed random keys in trees to their data, which can be stored like any other array."""

from collections.abc import Sequence
from typing import Any

import jax


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of typed random keys."""
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def implementations(tree: Any) -> list[Any]:
    """For each leaf, the implementation of its random keys, or None if it has none."""
    return [jax.random.key_impl(leaf) if is_key(leaf) else None for leaf in jax.tree.leaves(tree)]


def to_data(tree: Any) -> Any:
    """Replace the random keys of a tree by their data: uint32, with an additional axis."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, tree)


def from_data(found: Sequence[Any], tree: Any) -> Any:
    """The inverse of `to_data`; `found` are the `implementations` of the original tree."""
    leaves, structure = jax.tree.flatten(tree)
    pairs = zip(leaves, found, strict=True)
    typed = [leaf if i is None else jax.random.wrap_key_data(leaf, impl=i) for leaf, i in pairs]
    return jax.tree.unflatten(structure, typed)

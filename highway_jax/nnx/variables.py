"""The variables of an NNX module as nested dicts of ordinary arrays, random keys as their data."""

from typing import Any

import jax
from flax import nnx

from highway_jax.functional.activations import TracedActivation

# A model of a user's may have one among its attributes, where NNX would refuse to update another type's.
nnx.register_data_type(TracedActivation)
nnx.graph.register_graph_node_type(
    TracedActivation,
    flatten=lambda node: ([("index", node.index)], None),
    set_key=lambda node, key, value: setattr(node, str(key), value),
    pop_key=lambda node, key: vars(node).pop(str(key)),
    create_empty=lambda _: TracedActivation(0),
    clear=lambda node: None,
    init=lambda node, items: vars(node).update({str(key): value for key, value in items}),
)


def plain(state: Any) -> Any:
    """A state, or nested dicts of arrays, as nested dicts of ordinary arrays."""
    state = nnx.to_pure_dict(state) if isinstance(state, nnx.State) else state
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, state)


def update(module: nnx.Module, variables: Any) -> None:
    """Give a module all of its state, as `plain(nnx.state(module))` has it."""
    state = nnx.state(module)
    nnx.replace_by_pure_dict(state, _with_keys(nnx.to_pure_dict(state), variables))
    nnx.update(module, state)


def _with_keys(like: Any, variables: Any) -> Any:
    """Nested dicts of ordinary arrays, with random keys where another such tree has some."""

    def keyed(old: Any, leaf: Any) -> Any:
        return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(old)) if _is_key(old) else leaf

    return jax.tree.map(keyed, like, variables)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)

"""The variables of an NNX module as nested dicts of ordinary arrays, with random keys replaced by their data."""

from typing import Any

from flax import nnx

from highway_jax import keys
from highway_jax.functional.activations import TracedActivation

# A user's model may have a TracedActivation as an attribute, which NNX could not update without this registration.
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
    """Convert a state, or nested dicts of arrays, to nested dicts of ordinary arrays."""
    return keys.to_data(nnx.to_pure_dict(state) if isinstance(state, nnx.State) else state)


def update(module: nnx.Module, variables: Any) -> None:
    """Set the whole state of a module from nested dicts in the form of `plain(nnx.state(module))`."""
    state = nnx.state(module)
    nnx.replace_by_pure_dict(state, keys.from_data(keys.implementations(nnx.to_pure_dict(state)), variables))
    nnx.update(module, state)

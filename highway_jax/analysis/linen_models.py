"""The analysis of a Flax Linen module."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from highway_jax.analysis.models import Layers, Network, Path, Sown, gates_of, holders
from highway_jax.forward import TRANSIENT, Forward


class LinenNetwork(Network):
    """A Linen module with its variables, or with its parameters only."""

    params = ("params",)

    def __init__(self, model: nn.Module, variables: Any, batch: Any, forward: Forward):
        if not isinstance(variables, Mapping):
            raise ValueError(f"variables is {variables!r}; it must be the variables of the Linen module, or its params")
        self._whole = "params" in variables  # no submodule can have this name in Flax
        self._model, self._forward = model, forward
        variables = variables if self._whole else {"params": variables}
        self.variables = {name: values for name, values in variables.items() if name not in TRANSIENT}
        self.layers = self._find(batch)

    def outputs(self, variables: Any, batch: Any) -> Any:
        """The outputs of the module for a batch."""
        return self._applied(variables, batch, False)

    def sown(self, variables: Any, batch: Any) -> Sown:
        """What the submodules sow into the collection `intermediates`."""
        return flatten_dict(self._applied(variables, batch, "intermediates")[1].get("intermediates", {}))

    def as_given(self, variables: Any) -> Any:
        """Variables, or parameters only, in the form in which they were given."""
        return variables if self._whole else variables["params"]

    def _applied(self, variables: Any, batch: Any, mutable: Any) -> Any:
        return nn.apply(lambda module: self._forward(module, batch, False), self._model, mutable=mutable)(variables)

    def _find(self, batch: Any) -> list[Layers]:
        order: dict[Path, int] = {}
        called: dict[Path, tuple[nn.Module, int]] = {}

        def note(call, args, kwargs, context):
            path = context.module.path
            order.setdefault(path, len(order))
            y = call(*args, **kwargs)
            arrays = [leaf for leaf in jax.tree.leaves(y) if isinstance(leaf, jax.Array)]
            if arrays and (path not in called or context.method_name == "__call__"):
                called[path] = context.module, arrays[0].ndim  # a scan adds axes to what is sown
            return y

        def trace(variables, batch):
            with nn.intercept_methods(note):
                return unflatten_dict(self.sown(variables, batch))

        sown = flatten_dict(jax.eval_shape(trace, self.variables, batch))
        found = []
        # A traced function returns dicts with sorted keys, "layer10" before "layer2", so use the order of its calls.
        for path in sorted(holders(sown, self._model), key=order.__getitem__):
            module, ndim = called[path]
            shape = sown[(*path, "transform_gate")][0].shape
            found.append(Layers(path, gates_of(module), shape[: len(shape) - ndim], shape[-1]))
        return found

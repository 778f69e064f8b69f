"""The analysis of a Flax NNX module."""

from typing import Any

import jax
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from highway_jax.analysis.models import Layers, Network, Path, Sown, gates_of, holders, name_of
from highway_jax.forward import Forward
from highway_jax.linen.layers import Flagged
from highway_jax.nnx.variables import plain, update


class NNXNetwork(Network):
    """An NNX module with its own or other variables. The module itself is not changed."""

    def __init__(self, model: nnx.Module, variables: Any, batch: Any, forward: Forward):
        self._graph, self._state = nnx.split(model)
        self._forward = forward
        self.variables = _completed(model, variables)
        self.layers = self._find(batch)

    def outputs(self, variables: Any, batch: Any) -> Any:
        """The outputs of the module for a batch."""
        return self._forward(self.as_given(variables), batch, False)

    def sown(self, variables: Any, batch: Any) -> Sown:
        """What the submodules sow as `nnx.Intermediate`."""
        called = nnx.capture(lambda module: self._forward(module, batch, False), nnx.Intermediate)
        return flatten_dict(nnx.to_pure_dict(called(self.as_given(variables))[1]))

    def as_given(self, variables: Any) -> Any:
        """A copy of the module with these variables, in evaluation mode."""
        module, flat = nnx.merge(self._graph, self._state, copy=True), dict(flatten_dict(variables))
        parts: dict[Path, Any] = {path: part for path, part in nnx.iter_modules(module) if isinstance(part, Flagged)}
        closed = {path: flat.pop((*path, "closed"), None) for path in parts}
        for part in parts.values():
            part.closed = None  # it must not be in the state that is updated
        update(module, unflatten_dict(flat))
        for path, part in parts.items():
            if closed[path] is not None:
                part.closed = nnx.data(closed[path])
        module.eval()
        return module

    def _find(self, batch: Any) -> list[Layers]:
        # A batch axis of a length that no parameter has can be told from the axes of layers in front of it.
        size = 1 + max((length for leaf in jax.tree.leaves(self.variables) for length in np.shape(leaf)), default=1)
        many = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), batch)
        paths: list[Path] = []

        def trace(variables: Any, batch: Any) -> Any:
            sown = self.sown(variables, batch)
            paths.extend(sown)
            return list(sown.values())

        jaxpr, shapes = jax.make_jaxpr(trace, return_shape=True)(self.variables, many)
        sown = dict(zip(paths, shapes, strict=True))
        outputs = iter(jaxpr.jaxpr.outvars)
        done: dict[Path, tuple[int, ...]] = {}  # where in the program all states of a module exist
        for path, values in sown.items():
            for place in [_place(jaxpr.jaxpr, next(outputs)) for _ in jax.tree.leaves(values)]:
                done[path[:-1]] = max(place, done.get(path[:-1], ()))
        model = self.as_given(self.variables)
        modules, found = dict(nnx.iter_modules(model)), []
        for path in sorted(holders(sown, model), key=done.__getitem__):
            shape = sown[(*path, "transform_gate")][0].shape
            if size not in shape[:-1]:
                raise ValueError(
                    f"layer {name_of(path)!r} has gates of shape {shape} and no axis of the batch's {size}"
                )
            found.append(Layers(path, gates_of(modules[path]), shape[: shape.index(size)], shape[-1]))
        return found


def _place(jaxpr: Any, value: Any) -> tuple[int, ...]:
    """The index of the equation that computes a value, followed by those inside of nested programs."""
    for index, equation in enumerate(jaxpr.eqns):
        for position, output in enumerate(equation.outvars):
            if output is value:
                inner = getattr(equation.params.get("jaxpr"), "jaxpr", equation.params.get("jaxpr"))
                if inner is None or len(inner.outvars) != len(equation.outvars):
                    return (index,)
                return index, *_place(inner, inner.outvars[position])
    return ()


def _completed(model: nnx.Module, variables: Any) -> Any:
    """The whole state of a module as nested dicts of ordinary arrays, with the given values replacing its own.

    Raises:
      ValueError: if the module does not have one of the given variables, or has it in another shape.
    """
    flat = flatten_dict(plain(nnx.state(model)))
    given = {} if variables is None else plain(variables)
    names = {tuple(map(str, path)): path for path in flat}  # stored variables have strings for list indices
    for path, value in flatten_dict(given).items():
        known = names.get(tuple(map(str, path)))
        if known is None:
            raise ValueError(f"variables has {name_of(path)!r}, which this {type(model).__name__} does not have")
        if np.shape(value) != np.shape(flat[known]):
            raise ValueError(
                f"variables has {name_of(path)!r} of shape {np.shape(value)}; this {type(model).__name__}'s is of "
                f"shape {np.shape(flat[known])}"
            )
        flat[known] = value
    return unflatten_dict(flat)

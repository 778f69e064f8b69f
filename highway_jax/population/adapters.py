"""Flax models as pure functions: how a Linen or NNX model is built and applied to a batch."""

import contextlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax.core import DenyList

from highway_jax.forward import TRANSIENT, Forward, call
from highway_jax.population.arguments import shown


class Adapter(NamedTuple):
    """A model as pure functions, the same for Linen and NNX.

    Attributes:
      init: `init(hp, key, batch) -> (params, collections)`, the initial variables; `collections` holds those that are
        not trained.
      apply: `apply(hp, params, collections, batch, key, train) -> (outputs, collections)`; the key seeds everything
        random in training.
      variables: `variables(params, collections)`, both combined in the form that Flax takes.
    """

    init: Callable[..., tuple[Any, Any]]
    apply: Callable[..., tuple[Any, Any]]
    variables: Callable[[Any, Any], Any]


def adapter(model: Callable[..., Any], forward: Forward | None) -> Adapter:
    """Return the adapter for what `model` builds: a Linen module from `hp`, or an NNX module from `hp` and `rngs`.

    Raises:
      TypeError: if `model` takes neither.
    """
    library = _library(model)
    if isinstance(model, type) and library == "nnx":  # a class's signature does not say that it takes rngs
        return _nnx(model, forward or _call)
    signature = inspect.signature(model) if callable(model) and (isinstance(model, type) or not library) else None
    if signature is not None and next(iter(signature.parameters), None) != "rngs":
        for make, arguments in (_linen, ("hp",)), (_nnx, ("hp", "rngs")):
            with contextlib.suppress(TypeError):
                signature.bind(*arguments)
                return make(model, forward or _call)
    takes = f"is {shown(model)}" if signature is None else f"takes {signature}"
    raise TypeError(
        f"model {takes}; it must be a function of (hp) that returns a Linen module, or of (hp, rngs) that returns an "
        "NNX module"
    )


def _library(model: Any) -> str | None:
    """The part of Flax that a module or its class belongs to, "linen" or "nnx", found without importing NNX."""
    kinds = (model if isinstance(model, type) else type(model)).__mro__
    parts = [kind.__module__.split(".")[1] for kind in kinds if kind.__module__.startswith(("flax.linen", "flax.nnx"))]
    return parts[0] if parts else None


def _call(model: Any, batch: Any, train: bool) -> Any:
    try:
        batch["x"]
    except (KeyError, IndexError, TypeError):
        form = str(jax.tree.structure(batch)).removeprefix("PyTreeDef(").removesuffix(")")
        raise ValueError(
            f"a batch is {form}, without the 'x' that the model is called with; name the inputs 'x', or give "
            "forward=lambda model, batch, train: ..."
        ) from None
    return call(model, batch, train)


def _linen(model: Callable[[Any], nn.Module], forward: Forward) -> Adapter:
    def built(hp: Any) -> nn.Module:
        module = model(hp)
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"model(hp) returns {shown(module)}; it must return a Linen module, or take (hp, rngs) for NNX"
            )
        return module

    def init(hp: Any, key: jax.Array, batch: Any) -> tuple[Any, Any]:
        variables = dict(nn.init(lambda module: forward(module, batch, False), built(hp))(key))
        params = variables.pop("params", {})
        return params, {name: values for name, values in variables.items() if name not in TRANSIENT}

    def apply(hp: Any, params: Any, collections: Any, batch: Any, key: jax.Array, train: bool) -> tuple[Any, Any]:
        variables = {"params": params, **collections}
        mutable = DenyList(("params", *TRANSIENT)) if train else False
        applied = nn.apply(lambda module: forward(module, batch, train), built(hp), mutable=mutable)
        if not train:
            return applied(variables), collections
        # Flax derives a stream that is not given by name from the stream "params".
        outputs, updated = applied(variables, rngs={"params": jax.random.fold_in(key, 0), "dropout": key})
        if lost := updated.keys() - collections.keys():
            raise ValueError(
                f"the model has a collection {min(lost)!r} in training that it did not have when it was initialized; "
                "it would be lost from step to step"
            )
        return outputs, {**collections, **updated}

    return Adapter(init, apply, _side_by_side)


def _nnx(model: Callable[..., Any], forward: Forward) -> Adapter:
    from flax import nnx

    from highway_jax.nnx.variables import plain, update

    def built(hp: Any, key: jax.Array) -> Any:
        module = model(hp, nnx.Rngs(key))
        if not isinstance(module, nnx.Module):
            raise TypeError(
                f"model(hp, rngs) returns {shown(module)}; it must return an NNX module, or take (hp) for Linen"
            )
        return module

    def collections_of(module: Any) -> Any:
        """Everything but the parameters; arrays that are not variables, such as a traced activation, are separate."""
        variables, constants = nnx.state(module, nnx.All(nnx.Variable, nnx.Not(nnx.Param)), nnx.Not(nnx.Variable))
        return {"variables": plain(variables), "constants": plain(constants)}

    def init(hp: Any, key: jax.Array, batch: Any) -> tuple[Any, Any]:
        module = built(hp, key)
        return plain(nnx.state(module, nnx.Param)), collections_of(module)

    def apply(hp: Any, params: Any, collections: Any, batch: Any, key: jax.Array, train: bool) -> tuple[Any, Any]:
        # The initial values are all replaced, so the compiler never computes them.
        module = built(hp, jax.random.key(0, impl="threefry2x32"))
        update(module, _merged(params, _merged(collections["variables"], collections["constants"])))
        module.train() if train else module.eval()
        outputs = forward(module, batch, train)
        return outputs, collections_of(module) if train else collections

    return Adapter(init, apply, _in_place)


def _side_by_side(params: Any, collections: Any) -> Any:
    return {"params": params, **collections}


def _in_place(params: Any, collections: Any) -> Any:
    return _merged(params, collections["variables"])


def _merged(one: Any, other: Any) -> Any:
    """Merge two trees of nested dicts that share no leaf."""
    return {
        name: _merged(one[name], other[name]) if name in one and name in other else (one | other)[name]
        for name in one | other
    }

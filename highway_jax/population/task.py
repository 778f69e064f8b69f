"""Tasks: what a training run is, as three pure functions of hyperparameters, state and data."""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from highway_jax.forward import Forward
from highway_jax.functional.activations import TracedActivation
from highway_jax.population.adapters import adapter
from highway_jax.population.arguments import check_function, check_is, shown, takes_hp
from highway_jax.population.space import Hyperparameters

Metrics = dict[str, jax.Array]
Loss = Callable[..., jax.Array]  # of outputs and a batch; and of `hp`, if it takes it


class Task(NamedTuple):
    """What a training run is.

    `hp` maps the names of a space to values, traced ones but for constants and static choices. States and batches are
    any trees of arrays. The functions are traced, so they must be pure. What is no array in a state, such as a Flax
    `TrainState`'s `tx`, is the same in all runs: a rate belongs into `optax.inject_hyperparams`, whose state has it.

    Attributes:
      init: `init(hp, key, batch) -> state`, the initial state; of the batch only shapes and dtypes matter.
      step: `step(hp, state, batch, key) -> (state, metrics)`, one update. The new state has the old one's shapes and
        dtypes; metrics are numbers by name, scalar or (batch,).
      evaluate: `evaluate(hp, state, batch) -> metrics`, likewise.

    Example, an update written by hand:

        def step(hp, w, batch, key):
            loss, gradient = jax.value_and_grad(lambda w: jnp.mean((batch["x"] @ w - batch["y"]) ** 2))(w)
            return w - hp["lr"] * gradient, {"loss": loss}
    """

    init: Callable[[Any, jax.Array, Any], Any]
    step: Callable[[Any, Any, Any, jax.Array], tuple[Any, Metrics]]
    evaluate: Callable[[Any, Any, Any], Metrics]

    def with_static(self, static: Mapping[str, Any], activations: Collection[str] = ()) -> "Task":
        """The task of traced hyperparameters alone; the others have these values.

        Args:
          static: values by name.
          activations: which of the traced ones are indices of activations; `TracedActivation` for the task.
        """

        def given(hp: Mapping[str, Any]) -> Hyperparameters:
            traced = {name: TracedActivation(hp[name]) if name in activations else hp[name] for name in hp}
            return Hyperparameters({**static, **traced})

        return self._given(given)

    def noting(self, read: set[str]) -> "Task":
        """The same task, which adds the names of the hyperparameters that it reads to a set."""
        return self._given(lambda hp: Hyperparameters(hp, read))

    def _given(self, change: Callable[[Any], Hyperparameters]) -> "Task":
        return Task(
            lambda hp, key, batch: self.init(change(hp), key, batch),
            lambda hp, state, batch, key: self.step(change(hp), state, batch, key),
            lambda hp, state, batch: self.evaluate(change(hp), state, batch),
        )


@struct.dataclass
class TrainState:
    """The state of a `supervised` run.

    Attributes:
      params: the model's parameters: of Linen the collection `params`, of NNX all `nnx.Param` as nested dicts.
      collections: its other variables, such as `batch_stats`; of NNX, random keys as their data.
      opt_state: the optimizer's state.
    """

    params: Any
    collections: Any
    opt_state: Any
    together: Callable[[Any, Any], Any] = struct.field(pytree_node=False)

    @property
    def variables(self) -> Any:
        """Parameters and collections as Flax takes them: for `module.apply` of Linen, for `nnx.update` of NNX."""
        return self.together(self.params, self.collections)


def supervised(
    model: Callable[..., Any],
    loss: Loss,
    optimizer: Callable[[Any], optax.GradientTransformation],
    metrics: Mapping[str, Loss] | None = None,
    *,
    forward: Forward | None = None,
    preprocess: Callable[[Any], Any] = lambda batch: batch,
    augment: Callable[[jax.Array, Any], Any] = lambda key, batch: batch,
) -> Task:
    """The task of training a Flax model by gradient descent.

    A batch is preprocessed, in training augmented, given to the model, and what comes out to `loss` and `metrics`.
    Batch statistics and all other collections are kept; dropout and all other random streams have keys of their own.

    `loss`, `metrics`, `preprocess` and `augment` may have one more argument named `hp`, the hyperparameters.

    Args:
      model: builds the model from hyperparameters: `model(hp)` a Linen module, or `model(hp, rngs)` an NNX one.
      loss: `loss(outputs, batch)`, one number or one per example; its mean is what a step lowers and what is reported.
      optimizer: `optimizer(hp)`, any of Optax, with schedules that count steps.
      metrics: further numbers to report, by name, each a function like `loss`.
      forward: `forward(model, batch, train)`, what the model is called with. By default `batch["x"]`, with `train=` or
        `deterministic=` if it takes them. A Linen model is bound to its variables, an NNX one in train or eval mode.
      preprocess: changes every batch, such as images of bytes into floats.
      augment: `augment(key, batch)` changes a training batch at random, after `preprocess`.

    Returns:
      A `Task` whose states are `TrainState`. Its functions raise ValueError when they are traced with a loss or metric
      of another shape than () or (batch,), or with a model that would lose a collection.

    Example:

        population.supervised(
            model=lambda hp: Net(dropout=hp["dropout"]),
            loss=lambda outputs, batch: (outputs - batch["y"]) ** 2,
            optimizer=lambda hp: optax.adamw(hp["lr"], weight_decay=hp["wd"]),
        )
    """
    check_function("loss", loss, "outputs", "batch", hp=True)
    check_function("optimizer", optimizer, "hp")
    check_function("preprocess", preprocess, "batch", hp=True)
    check_function("augment", augment, "key", "batch", hp=True)
    if forward is not None:
        check_function("forward", forward, "model", "batch", "train")
    metrics = metrics or {}
    check_is("metrics", metrics, Mapping, "a mapping from names to functions")
    for name, function in metrics.items():
        check_function(f"metrics[{name!r}]", function, "outputs", "batch", hp=True)
    adapted = adapter(model, forward)
    reported = {"loss": loss, **metrics}
    if "loss" in metrics:
        raise ValueError("metrics has 'loss', which is the loss's own name; choose another")

    def made(hp: Any) -> optax.GradientTransformation:
        tool = optimizer(hp)
        if not (hasattr(tool, "init") and hasattr(tool, "update")):
            raise TypeError(f"optimizer(hp) gives {shown(tool)}; it must give an optimizer of Optax")
        return tool

    def init(hp: Any, key: jax.Array, batch: Any) -> TrainState:
        one = jax.tree.map(lambda leaf: leaf[:1], _of(hp, preprocess)(batch))  # enough to learn the shapes
        params, collections = adapted.init(hp, key, one)
        return TrainState(params, collections, made(hp).init(params), adapted.variables)

    def measured(hp: Any, outputs: Any, batch: Any) -> Metrics:
        return {name: _measured(name, _of(hp, function), outputs, batch) for name, function in reported.items()}

    def step(hp: Any, state: TrainState, batch: Any, key: jax.Array) -> tuple[TrainState, Metrics]:
        augmentation, streams = jax.random.split(key)
        batch = _of(hp, augment)(augmentation, _of(hp, preprocess)(batch))

        def objective(params: Any) -> tuple[jax.Array, Any]:
            outputs, collections = adapted.apply(hp, params, state.collections, batch, streams, True)
            found = {name: values.mean() for name, values in measured(hp, outputs, batch).items()}
            return found["loss"], (found, collections)

        (value, (found, collections)), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
        tool = optax.with_extra_args_support(made(hp))  # some want the loss
        updates, opt_state = tool.update(gradients, state.opt_state, state.params, value=value)
        params = optax.apply_updates(state.params, updates)
        return state.replace(params=params, collections=collections, opt_state=opt_state), found  # type: ignore[attr-defined]

    def evaluate(hp: Any, state: TrainState, batch: Any) -> Metrics:
        batch = _of(hp, preprocess)(batch)
        outputs, _ = adapted.apply(hp, state.params, state.collections, batch, None, False)
        found = measured(hp, outputs, batch)
        finite = jnp.isfinite(found["loss"]).all()  # accuracies and the like would hide that the outputs are not
        return {name: jnp.where(finite, values, jnp.nan) for name, values in found.items()}

    return Task(init, step, evaluate)


def _of(hp: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function, which is given the hyperparameters if it takes them."""
    return functools.partial(function, hp=hp) if takes_hp(function) else function


def _measured(name: str, function: Loss, outputs: Any, batch: Any) -> jax.Array:
    """A loss or metric in float32 at least.

    Raises:
      ValueError: if it is neither a number nor one per example.
    """
    size = len(jax.tree.leaves(batch)[0])
    try:
        values = jnp.asarray(function(outputs, batch))
    except Exception as error:
        forms = (jax.tree.map(lambda leaf: jax.typeof(leaf).str_short(), tree) for tree in (outputs, batch))
        error.add_note("This is of {}(outputs, batch); outputs are {}, and a batch is {}.".format(name, *forms))
        raise
    if values.shape not in ((), (size,)):
        raise ValueError(
            f"{name} is of shape {values.shape} for a batch of {size}; it must be () or ({size},), a number or one "
            "for every example"
        )
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))

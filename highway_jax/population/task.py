"""Tasks: a training run as three pure functions of hyperparameters, state and data."""

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
Loss = Callable[..., jax.Array]  # of outputs and a batch, and optionally of `hp`


class Task(NamedTuple):
    """A training run as three pure functions.

    `hp` maps the names of the space to values. They are traced, except for constants and static choices. States and
    batches are arbitrary trees of arrays. Anything in a state that is not an array is shared by all runs, for example
    the `tx` of a Flax `TrainState`; use `optax.inject_hyperparams` to keep a learning rate in the state.

    Attributes:
      init: `init(hp, key, batch) -> state`, the initial state. Only shapes and dtypes of the batch matter.
      step: `step(hp, state, batch, key) -> (state, metrics)`, one update. The new state must have the structure, shapes
        and dtypes of the old one. Metrics are numbers by name, each of shape () or (batch,).
      evaluate: `evaluate(hp, state, batch) -> metrics`, with metrics as in `step`.

    Example:
      Linear regression, with the update written by hand:

      ```python
      def mean_squared_error(w, batch):
          return jnp.mean((batch["x"] @ w - batch["y"]) ** 2)

      def init(hp, key, batch):
          return jnp.zeros(batch["x"].shape[1])

      def step(hp, w, batch, key):
          loss, gradient = jax.value_and_grad(mean_squared_error)(w, batch)
          return w - hp["lr"] * gradient, {"loss": loss}

      def evaluate(hp, w, batch):
          return {"loss": mean_squared_error(w, batch)}

      task = population.Task(init, step, evaluate)
      ```
    """

    init: Callable[[Any, jax.Array, Any], Any]
    step: Callable[[Any, Any, Any, jax.Array], tuple[Any, Metrics]]
    evaluate: Callable[[Any, Any, Any], Metrics]

    def with_static(self, static: Mapping[str, Any], activations: Collection[str] = ()) -> "Task":
        """Return the task as a function of its traced hyperparameters only.

        Args:
          static: the values of all other hyperparameters, by name.
          activations: the names of the traced hyperparameters that are indices of activations, which the task receives
            as `TracedActivation`.
        """

        def given(hp: Mapping[str, Any]) -> Hyperparameters:
            traced = {name: TracedActivation(hp[name]) if name in activations else hp[name] for name in hp}
            return Hyperparameters({**static, **traced})

        return self._given(given)

    def noting(self, read: set[str]) -> "Task":
        """Return the same task, which adds the names of the hyperparameters that it reads to the set `read`."""
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
      params: the parameters of the model: the collection `params` in Linen, all `nnx.Param` as nested dicts in NNX.
      collections: all other variables of the model, such as `batch_stats`; in NNX, random keys are stored as their
        data.
      opt_state: the state of the optimizer.
      together: combines `params` and `collections` into `variables`.
    """

    params: Any
    collections: Any
    opt_state: Any
    together: Callable[[Any, Any], Any] = struct.field(pytree_node=False)

    @property
    def variables(self) -> Any:
        """Parameters and collections together, for `module.apply` in Linen or `nnx.update` in NNX."""
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
    """Return the task of training a Flax model by gradient descent.

    A batch is preprocessed, augmented in training, and passed to the model; `loss` and `metrics` then take the outputs.
    Batch statistics and all other collections are updated in training. Dropout and all other random streams receive
    their own keys.

    `loss`, the `metrics`, `preprocess` and `augment` may take the hyperparameters as an additional argument `hp`.

    Args:
      model: builds the model: `model(hp)` returns a Linen module, or `model(hp, rngs)` an NNX module.
      loss: `loss(outputs, batch)`, of shape () or (batch,). A step lowers its mean, which is reported as `loss`.
      optimizer: `optimizer(hp)` returns an Optax optimizer, whose schedules count steps.
      metrics: further metrics to report, by name, each a function like `loss`.
      forward: `forward(model, batch, train)` calls the model. By default, the model is called with `batch["x"]`, and
        with `train=` or `deterministic=` if it takes them. A Linen model is bound to its variables; an NNX model is in
        train or eval mode.
      preprocess: `preprocess(batch)` changes every batch, for example from bytes to floats.
      augment: `augment(key, batch)` changes a training batch at random, after `preprocess`.

    Returns:
      A `Task` whose state is a `TrainState`. `fit` raises a `ValueError` if the loss or a metric has another shape, or
        if the model creates a collection in training that it did not have at initialization.

    Raises:
      ValueError: if `metrics` has the name "loss".
      TypeError: if an argument is not a function of the arguments above.

    Example:
      ```python
      task = population.supervised(
          model=lambda hp: Net(dropout=hp["dropout"]),
          loss=lambda outputs, batch: (outputs - batch["y"]) ** 2,
          optimizer=lambda hp: optax.adamw(hp["lr"], weight_decay=hp["wd"]),
      )
      ```
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
        raise ValueError("metrics has 'loss', which is the name of the loss itself; choose another")

    def made(hp: Any) -> optax.GradientTransformation:
        tool = optimizer(hp)
        if not (hasattr(tool, "init") and hasattr(tool, "update")):
            raise TypeError(f"optimizer(hp) returns {shown(tool)}; it must return an Optax optimizer")
        return tool

    def init(hp: Any, key: jax.Array, batch: Any) -> TrainState:
        one = jax.tree.map(lambda leaf: leaf[:1], _of(hp, preprocess)(batch))  # enough to infer the shapes
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
        tool = optax.with_extra_args_support(made(hp))  # some optimizers need the loss
        updates, opt_state = tool.update(gradients, state.opt_state, state.params, value=value)
        params = optax.apply_updates(state.params, updates)
        return state.replace(params=params, collections=collections, opt_state=opt_state), found  # type: ignore[attr-defined]

    def evaluate(hp: Any, state: TrainState, batch: Any) -> Metrics:
        batch = _of(hp, preprocess)(batch)
        outputs, _ = adapted.apply(hp, state.params, state.collections, batch, None, False)
        found = measured(hp, outputs, batch)
        finite = jnp.isfinite(found["loss"]).all()  # an accuracy would hide NaN
        return {name: jnp.where(finite, values, jnp.nan) for name, values in found.items()}

    return Task(init, step, evaluate)


def _of(hp: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """Pass the hyperparameters to a function if it takes them."""
    return functools.partial(function, hp=hp) if takes_hp(function) else function


def _measured(name: str, function: Loss, outputs: Any, batch: Any) -> jax.Array:
    """Compute a loss or metric, in float32 at least.

    Raises:
      ValueError: if its shape is neither () nor (batch,).
    """
    size = len(jax.tree.leaves(batch)[0])
    try:
        values = jnp.asarray(function(outputs, batch))
    except Exception as error:
        forms = (jax.tree.map(lambda leaf: jax.typeof(leaf).str_short(), tree) for tree in (outputs, batch))
        place = "The error is in {}(outputs, batch), where outputs are {} and a batch is {}."
        error.add_note(place.format(name, *forms))
        raise
    if values.shape not in ((), (size,)):
        raise ValueError(
            f"{name} is of shape {values.shape} for a batch of {size}; it must be () or ({size},), a number or one "
            "for every example"
        )
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))

"""The analysis of trained highway networks: gates, routing, lesions and effective depth (Section 4).

The functions are pure functions of model, variables and data. They accept any Flax module that contains highway layers.
In Linen, this is an `MLP` of any kind with a transform gate, a `ConvNet`, or any network that uses `HighwayDense`,
`HighwayConv`, `Highway`, `HighwayStack` or `Skippable`, with or without `nn.scan`. In NNX, it is any module that uses
the layers of `highway_jax.nnx`.

Results are NumPy arrays with one row per highway layer, in the order in which the network calls them. A highway layer
inside the gate of another layer belongs to that gate and has no row. Feature maps are averaged over space, as is any
axis between batch and blocks. If layers differ in width, the rows of narrow layers end in NaN. States that a layer does
not have are NaN. Images are given as stored; `preprocess` converts them to the input of the network.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from highway_jax import parallel
from highway_jax.analysis.linen_models import LinenNetwork
from highway_jax.analysis.models import Network
from highway_jax.data import Array
from highway_jax.forward import Forward, call
from highway_jax.functional.classification import cross_entropy

Preprocess = Callable[[Array], Any]
Score = Callable[[Any, Any], jax.Array]  # of outputs and a batch; returns a number for each example


OPEN = 0.5  # a gate above this transforms more than it carries


class InnerStates(NamedTuple):
    """The inner states of all highway layers for one sample, each of shape (layers, blocks).

    Attributes:
      block_state: H(x).
      transform_gate: T(x).
      carry_gate: C(x).
      block_output: y.
      block_input: x. That of a module's first layer follows from Eq. 2, x = (y - H·T) / C. It is NaN where the carry
        gate is closed (below 0.001), or where a state is missing; means over space leave out such pixels.
    """

    block_state: np.ndarray
    transform_gate: np.ndarray
    carry_gate: np.ndarray
    block_output: np.ndarray
    block_input: np.ndarray


class GateStatistics(NamedTuple):
    """Statistics of the transform gates over a dataset (Figures 2 and 3).

    Attributes:
      bias: (layers, blocks) the biases b_T of the gates; NaN if they cannot be read from the parameters.
      mean: (layers, blocks) the mean outputs of the gates over all samples.
      open_fraction: (layers, blocks) the fraction of samples for which each gate is open, above 0.5.
      class_mean: (classes, layers, blocks) the mean outputs over the samples of each class; NaN for a class without
        samples. It is empty if the samples have no classes.
      class_size: (classes,) the number of samples in each class.
      open_layers: (n,) the effective number of open layers for each sample: the mean gate output of each layer, summed
        over layers.
    """

    bias: np.ndarray
    mean: np.ndarray
    open_fraction: np.ndarray
    class_mean: np.ndarray
    class_size: np.ndarray
    open_layers: np.ndarray

    @property
    def routing(self) -> np.ndarray:
        """(classes, layers, blocks) the difference of each class's mean from the overall mean (Figure 3)."""
        return self.class_mean - self.mean


class Lesions(NamedTuple):
    """The performance of a network with one layer at a time replaced by the identity (Section 4.2, Figure 4).

    Attributes:
      loss: (layers,) the mean loss without this layer, by default the cross entropy in nats.
      error: (layers,) the mean error without this layer, by default the fraction of misclassified samples; NaN if the
        loss is not finite or the error is unknown.
      intact_loss: the mean loss of the intact network.
      intact_error: the mean error of the intact network.
    """

    loss: np.ndarray
    error: np.ndarray
    intact_loss: float
    intact_error: float

    @property
    def order(self) -> np.ndarray:
        """(layers,) the indices of the layers, in increasing order of the loss after their lesion."""
        return np.argsort(self.loss, kind="stable")

    @property
    def damage(self) -> np.ndarray:
        """(layers,) the increase of the loss by each lesion; 0 if it falls or changes by no more than rounding."""
        rise = self.loss - self.intact_loss
        # Rounding in float32 changes the fifth or sixth digit of a loss.
        return np.where(rise <= 1e-4 * abs(self.intact_loss), 0, rise)


class Dropped(NamedTuple):
    """The performance of a network with several layers at once replaced by the identity.

    Attributes:
      order: (layers,) the indices of the layers in the order in which they were dropped.
      loss: (layers + 1,) the mean loss without the first k of these layers, for k from 0 to all.
      error: (layers + 1,) the mean error likewise; loss and error are as in `Lesions`.
    """

    order: np.ndarray
    loss: np.ndarray
    error: np.ndarray


def gate_statistics(
    model: Any,
    variables: Any,
    split: Mapping[str, Any],
    *,
    preprocess: Preprocess = jnp.asarray,
    forward: Forward = call,
    batch_size: int = 1000,
) -> GateStatistics:
    """Measure the biases and the activity of a network's transform gates: overall, per class and per sample.

    Args:
      model: a Linen or NNX module. It is called in evaluation mode; an NNX module is not changed.
      variables: for Linen, all variables, such as `{"params": ..., "batch_stats": ...}`, or the collection `params`
        only. For NNX, nested dicts or an `nnx.State` with all or some of the module's variables, or None for those of
        the module. `population.fit(...).best.variables` is accepted for both.
      split: n samples, as a dict of arrays with a common leading axis: `x`, and anything else that `forward` needs. `y`
        are the classes if they are (n,) integers.
      preprocess: converts stored images, `x`, to the input of the network.
      forward: `forward(model, batch, train)` calls the model, as in `population.supervised`. By default, the model is
        called with `batch["x"]`, and with `train=` or `deterministic=` if it takes them.
      batch_size: the number of samples processed at a time, which limits memory.

    Returns:
      The statistics of the gates.

    Raises:
      TypeError: if the model is not a Flax module, or the split is not a mapping.
      ValueError: if the model has no highway layers, an NNX module does not have these variables, or the arrays of the
        split differ in length.

    Example:
      ```python
      statistics = analysis.gate_statistics(model, variables, {"x": images, "y": labels})
      statistics.mean  # (layers, blocks)
      ```
    """
    split = _arrays(split)
    found = _network(model, variables, _one(split, preprocess), forward)
    labels = _labels(split)
    classes = np.zeros(len(split["x"]), np.int32) if labels is None else labels
    num_classes = int(classes.max()) + 1

    def step(sums, numbered):
        batch, classes, real = numbered
        gates = [state["transform_gate"] for state in found.states(found.variables, _prepared(batch, preprocess))]
        of_class = jax.nn.one_hot(classes, num_classes) * real[:, None]

        def add(total, gate):
            known = jnp.isfinite(gate)  # otherwise, zero times NaN would affect other classes
            values, unknown = (
                jnp.einsum("nc,nb->cb", of_class, of_gate, precision="float32")
                for of_gate in (jnp.where(known, gate, 0), 1 - known.astype(gate.dtype))
            )
            return total + jnp.where(unknown > 0, jnp.nan, values)

        def count(total, gate):
            return total + jnp.sum((gate > OPEN) & real[:, None], axis=0, dtype=jnp.int32)

        totals = jax.tree.map(add, sums[0], gates), jax.tree.map(count, sums[1], gates)
        return totals, sum(gate.mean(axis=-1) for gate in gates)

    biases = found.biases
    start = (
        [jnp.zeros((num_classes, len(bias))) for bias in biases],
        [jnp.zeros(len(bias), jnp.int32) for bias in biases],
    )
    batches = _batches((split, classes), batch_size)
    (sums, opened), open_layers = jax.jit(lambda batches: lax.scan(step, start, batches))(batches)
    by_class = np.stack([_table(layers) for layers in zip(*sums, strict=True)])
    size = np.bincount(classes, minlength=num_classes)
    with np.errstate(invalid="ignore"):
        class_mean = by_class / size[:, None, None]
    mean = by_class.sum(axis=0) / size.sum()
    known = slice(0 if labels is None else None)
    return GateStatistics(
        bias=_table(biases),
        mean=mean,
        open_fraction=np.where(np.isfinite(mean), _table([layer / size.sum() for layer in opened]), np.nan),
        class_mean=class_mean[known],
        class_size=size[known],
        open_layers=np.asarray(open_layers).reshape(-1)[: size.sum()],
    )


def inner_states(
    model: Any,
    variables: Any,
    image: Any,
    *,
    preprocess: Preprocess = jnp.asarray,
    forward: Forward = call,
) -> InnerStates:
    """Return the gates and the block outputs for a single sample (Figure 2, right half).

    Args:
      model: as in `gate_statistics`.
      variables: as in `gate_statistics`.
      image: one sample, such as (height, width, channels), or a dict of arrays if `forward` needs more than `x`.
      preprocess: as in `gate_statistics`.
      forward: as in `gate_statistics`.

    Returns:
      The inner states of all highway layers.

    Raises:
      TypeError: as in `gate_statistics`.
      ValueError: as in `gate_statistics`.
    """
    sample = image if isinstance(image, Mapping) else {"x": image}
    split = _arrays({name: np.asarray(value)[None] for name, value in sample.items()})
    found = _network(model, variables, _one(split, preprocess), forward)
    states = jax.jit(lambda variables, batch: found.states(variables, _prepared(batch, preprocess)))(
        found.variables, split
    )
    nothing = [jnp.full_like(state["transform_gate"], jnp.nan) for state in states]
    return InnerStates(
        *(
            _table([state.get(name, nan)[0] for state, nan in zip(states, nothing, strict=True)])
            for name in InnerStates._fields
        )
    )


def lesion(
    model: Any,
    variables: Any,
    split: Mapping[str, Any],
    *,
    loss: Score = cross_entropy,
    error: Score | None = None,
    preprocess: Preprocess = jnp.asarray,
    forward: Forward = call,
    batch_size: int = 100,
    mesh: Mesh | None = None,
) -> Lesions:
    """Evaluate a network with all transform gates of one layer closed, for each layer in turn (Figure 4).

    All lesions are computed in one compiled call and are divided over the devices of the mesh. A device processes its
    lesions in lockstep, so memory grows with `batch_size` times the number of lesions per device.

    Args:
      model: as in `gate_statistics`.
      variables: as in `gate_statistics`.
      split: as in `gate_statistics`.
      loss: `loss(outputs, batch)`, which returns a number for each example, (batch,).
      error: `error(outputs, batch)`, likewise. By default, whether an example is misclassified if `loss` is the cross
        entropy, and NaN otherwise.
      preprocess: as in `gate_statistics`.
      forward: as in `gate_statistics`.
      batch_size: the number of samples processed at a time.
      mesh: the devices, from `parallel.runs_mesh`; all devices by default.

    Returns:
      The loss and the error without each layer, and those of the intact network.

    Raises:
      TypeError: as in `gate_statistics`.
      ValueError: as in `gate_statistics`; also if a layer cannot be closed, the loss or the error has another shape, or
        the loss is the cross entropy but the outputs are not logits or `y` are not labels.

    Example:
      ```python
      lesions = analysis.lesion(model, variables, {"x": images, "y": labels})
      analysis.effective_layers(lesions.damage)
      ```
    """
    split = _arrays(split)
    found = _network(model, variables, _one(split, preprocess), forward)
    closed = np.eye(found.count + 1, found.count, dtype=bool)  # the last row is the whole network
    losses, errors = _evaluate(found, split, closed, loss, error, preprocess, batch_size, mesh)
    return Lesions(losses[:-1], errors[:-1], float(losses[-1]), float(errors[-1]))


def drop_layers(
    model: Any,
    variables: Any,
    split: Mapping[str, Any],
    order: Sequence[int] | np.ndarray,
    *,
    loss: Score = cross_entropy,
    error: Score | None = None,
    preprocess: Preprocess = jnp.asarray,
    forward: Forward = call,
    batch_size: int = 100,
    mesh: Mesh | None = None,
) -> Dropped:
    """Evaluate a network with the gates of more and more layers closed. It costs as much as `lesion`.

    Args:
      model: as in `lesion`.
      variables: as in `lesion`.
      split: as in `lesion`.
      order: the indices of the layers in the order in which to drop them, such as `Lesions.order`.
      loss: as in `lesion`.
      error: as in `lesion`.
      preprocess: as in `lesion`.
      forward: as in `lesion`.
      batch_size: as in `lesion`.
      mesh: as in `lesion`.

    Returns:
      The loss and the error for each number of dropped layers.

    Raises:
      TypeError: as in `lesion`.
      ValueError: as in `lesion`, and if `order` is not a permutation of the layers.
    """
    split = _arrays(split)
    found = _network(model, variables, _one(split, preprocess), forward)
    order = np.asarray(order)
    if sorted(order.tolist()) != list(range(found.count)):
        raise ValueError(f"order is {order.tolist()}; it must hold each of the layers 0 to {found.count - 1} once")
    closed = np.argsort(order) < np.arange(found.count + 1)[:, None]
    losses, errors = _evaluate(found, split, closed, loss, error, preprocess, batch_size, mesh)
    return Dropped(order, losses, errors)


def effective_layers(damage: np.ndarray) -> float:
    """The effective number of layers that matter, from the damage of each layer's lesion.

    It is the exponential of the entropy of the layers' shares of the total damage, exp(-sum_l p_l log p_l). If k
    layers cause equal damage and the others none, it is k.

    Args:
      damage: (layers,) the damage of each layer, at least 0, such as `Lesions.damage`.

    Returns:
      The effective number of layers; 0 if there is no damage, NaN if some damage is not finite.
    """
    if not damage.any():
        return 0.0
    share = damage / damage.sum()
    return float(np.exp(-np.sum(share * np.log(np.where(share == 0, 1, share)))))


def close_gates(model: Any, variables: Any, inputs: Any, closed: Array, *, forward: Forward = call) -> Any:
    """Turn highway layers into the identity: exactly T = 0, and C = 1 for independent carry gates (Eq. 4).

    A layer that changes the size of its input then only zero-pads or sub-samples it.

    The biases of closed layers become minus infinity for T and infinity for C. A `Highway` with a custom T or C, which
    may have no biases, receives an additional parameter `closed` instead.

    Args:
      model: as in `gate_statistics`.
      variables: as in `gate_statistics`.
      inputs: a batch of the network's input, of which only shape and dtype matter, or a dict of arrays if `forward`
        needs more than `x`.
      closed: (layers,) bool, the layers to close; may be traced, so that lesions can be mapped.
      forward: as in `gate_statistics`.

    Returns:
      For Linen, changed variables or parameters in the form in which they were given. For NNX, a new module in
        evaluation mode.

    Raises:
      TypeError: as in `gate_statistics`.
      ValueError: as in `gate_statistics`, and if a layer cannot be closed.
    """
    found = _network(model, variables, inputs if isinstance(inputs, Mapping) else {"x": inputs}, forward)
    return found.as_given(found.closed(found.variables, closed))


def _evaluate(
    found: Network,
    split: dict[str, np.ndarray],
    closed: np.ndarray,
    loss: Score,
    error: Score | None,
    preprocess: Preprocess,
    batch_size: int,
    mesh: Mesh | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The mean loss and error, (masks,) each, with layers closed according to masks (masks, layers)."""
    if loss is cross_entropy and _labels(split) is None:
        raise ValueError("split has no labels, (n,) integers y from 0 on; without labels, give another loss")
    if error is None:
        error = _misclassified if loss is cross_entropy else _unknown
    mesh = parallel.runs_mesh() if mesh is None else mesh

    def evaluate(closed, variables, batches):
        variables = found.closed(variables, closed)

        def step(sums, masked):
            batch, real = masked
            batch = _prepared(batch, preprocess)
            outputs = found.outputs(variables, batch)
            if loss is cross_entropy and not isinstance(outputs, jax.Array):
                raise ValueError(f"the network returns a {type(outputs).__name__}, not logits; forward can select them")
            losses = _scores("loss", loss(outputs, batch), len(real))
            errors = jnp.where(jnp.isfinite(losses), _scores("error", error(outputs, batch), len(real)), jnp.nan)
            return sums + jnp.stack([losses, errors]).sum(axis=-1, where=real), None

        return lax.scan(step, jnp.zeros(2), batches)[0]

    masks = len(closed)
    closed = np.pad(closed, [(0, parallel.padded(masks, mesh) - masks), (0, 0)])
    # Lesions in lockstep share the kernels, so that the rows of a product are the samples of all lesions.
    mapped = jax.jit(parallel.map_runs(evaluate, mesh, runs_per_batch=len(closed)))
    batches = _batches((split,), batch_size)
    sums = mapped(parallel.split_runs(mesh, closed), *parallel.replicate(mesh, (found.variables, batches)))
    losses, errors = np.asarray(sums)[:masks].T / len(split["x"])
    return losses, errors


def _misclassified(logits: jax.Array, batch: Any) -> jax.Array:
    return logits.argmax(axis=-1) != batch["y"]


def _unknown(outputs: Any, batch: Any) -> jax.Array:
    return jnp.full(len(jax.tree.leaves(batch)[0]), jnp.nan)


def _scores(name: str, values: Any, size: int) -> jax.Array:
    """Check the loss or error of each example, and convert it to float32 at least."""
    values = jnp.asarray(values)
    if values.shape != (size,):
        raise ValueError(
            f"{name} is of shape {values.shape} for a batch of {size}; it must be ({size},), a number for every example"
        )
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def _arrays(split: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a split on the host.

    Raises:
      TypeError: if the split is not a mapping.
      ValueError: if it has no `x`, or its arrays do not have the same, nonempty leading axis.
    """
    if not isinstance(split, Mapping):
        raise TypeError(
            f"split is an object of type {type(split).__name__}; it must be a mapping of arrays: {{'x': ...}}"
        )
    arrays = {name: np.asarray(values) for name, values in split.items()}
    if "x" not in arrays:
        raise ValueError(f"split has {', '.join(map(repr, arrays)) or 'nothing'}; it must have 'x'")
    leading = {array.shape[:1] for array in arrays.values()}
    if len(leading) > 1 or leading <= {(), (0,)}:
        shapes = ", ".join(f"{name!r} of shape {array.shape}" for name, array in arrays.items())
        raise ValueError(f"split has {shapes}; all must have the same leading axis, of at least one sample")
    return arrays


def _labels(split: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """The classes of a split if its `y` are (n,) integers from 0 on, otherwise None."""
    labels = split.get("y")
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.min() < 0:
        return None
    return labels


def _one(split: Mapping[str, np.ndarray], preprocess: Preprocess) -> Any:
    """Shapes and dtypes of a preprocessed batch of one sample."""
    shapes = {
        name: jax.ShapeDtypeStruct((1, *array.shape[1:]), jax.dtypes.canonicalize_dtype(array.dtype))
        for name, array in split.items()
    }
    return jax.eval_shape(lambda batch: _prepared(batch, preprocess), shapes)


def _prepared(batch: Mapping[str, Any], preprocess: Preprocess) -> dict[str, Any]:
    return {**batch, "x": preprocess(batch["x"])}


def _batches(trees: tuple[Any, ...], batch_size: int) -> tuple[Any, ...]:
    """Divide samples into batches, with leading axes (steps, batch_size), and mark which of them are real.

    The last batch is filled up with copies of the last sample, so that `preprocess` and the network never see zeros.
    """
    samples = len(jax.tree.leaves(trees)[0])
    size = min(batch_size, samples)

    def cut(array: Array, filler: Any) -> np.ndarray:
        filled = np.concatenate([array, np.repeat(filler, -samples % size, axis=0)])
        return filled.reshape(-1, size, *filled.shape[1:])

    real = cut(np.ones(samples, bool), np.zeros(1, bool))
    return *jax.tree.map(lambda array: cut(array, array[-1:]), trees), real


def _table(rows: Sequence[Array]) -> np.ndarray:
    """Combine rows of any lengths in one array, filled up with NaN."""
    table = np.full((len(rows), max(map(len, rows))), np.nan, np.float32)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row
    return table


def _network(model: Any, variables: Any, batch: Any, forward: Forward) -> Network:
    """Return a model with its variables as a `Network`.

    Args:
      model: a Linen or NNX module.
      variables: see `gate_statistics`.
      batch: a batch of one example, of which only shapes and dtypes matter.
      forward: `forward(model, batch, train)`, which calls the model.

    Raises:
      TypeError: if the model is not a Flax module.
      ValueError: if it has no highway layers, or does not have these variables.
    """
    if isinstance(model, nn.Module):
        return LinenNetwork(model, variables, batch, forward)
    from flax import nnx  # imported here, since it takes time that users of Linen need not spend

    from highway_jax.analysis.nnx_models import NNXNetwork

    if isinstance(model, nnx.Module):
        return NNXNetwork(model, variables, batch, forward)
    raise TypeError(f"model is an object of type {type(model).__name__}; it must be a Linen or an NNX module")

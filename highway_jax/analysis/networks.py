"""What a trained highway network does inside: gates, routing, lesions, depth in use (Section 4).

Pure functions of (model, variables, data) for any Flax module that contains highway layers. Of Linen: an `MLP`, also of
a `Kind` that has a transform gate, a `ConvNet`, or a network of one's own of `HighwayDense`, `HighwayConv`, `Highway`,
`HighwayStack` and `Skippable`, with `nn.scan` or without. Of NNX: any module with those of `highway_jax.nnx` in it.

Results are NumPy arrays with one row per highway layer, in the order in which the network calls them. A highway layer
inside another one's gate is part of that gate and has no row. Feature maps are averaged over space, as is any axis
between batch and blocks. Where layers differ in width, a narrow layer's row ends in NaN, and what a layer does not have
is NaN. Images are given as stored; `preprocess` turns them into the network's input.
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
Score = Callable[[Any, Any], jax.Array]  # of outputs and a batch, a number for every example


OPEN = 0.5  # a gate above this transforms more than it carries


class InnerStates(NamedTuple):
    """What every block of every highway layer does with one sample; each of shape (layers, blocks).

    `block_input` is NaN where the carry gate of a module's first layer is closed, since it follows from Eq. 2:
    x = (y - H·T) / C. A state that a layer does not sow is NaN, and so is then its input.
    """

    block_state: np.ndarray
    transform_gate: np.ndarray
    carry_gate: np.ndarray
    block_output: np.ndarray
    block_input: np.ndarray


class GateStatistics(NamedTuple):
    """The transform gates over a dataset (Figures 2 and 3).

    Attributes:
      bias: (layers, blocks) the gates' biases b_T; NaN where none can be read from the parameters.
      mean: (layers, blocks) their mean output over all samples.
      open_fraction: (layers, blocks) the fraction of samples for which they are open, above 0.5.
      class_mean: (classes, layers, blocks) their mean output over each class; NaN for a class without samples. Where
        samples have no classes, there are 0 of them.
      class_size: (classes,) number of samples.
      open_layers: (n,) how many layers' worth of transformation each sample gets: the sum over layers of its
        gates' mean output over the layer's blocks, from 0 to the number of layers.
    """

    bias: np.ndarray
    mean: np.ndarray
    open_fraction: np.ndarray
    class_mean: np.ndarray
    class_size: np.ndarray
    open_layers: np.ndarray

    @property
    def routing(self) -> np.ndarray:
        """(classes, layers, blocks): how far each class's mean is from the overall one (Figure 3)."""
        return self.class_mean - self.mean


class Lesions(NamedTuple):
    """A network's performance with one layer at a time made the identity (Section 4.2, Figure 4).

    Attributes:
      loss: (layers,) mean loss without this layer; by default cross entropy (nats).
      error: (layers,) mean error without this layer, by default the fraction of samples misclassified; NaN where the
        loss is not finite, or no error is known.
      intact_loss, intact_error: the whole network's.
    """

    loss: np.ndarray
    error: np.ndarray
    intact_loss: float
    intact_error: float

    @property
    def order(self) -> np.ndarray:
        """(layers,) layer indices, the one whose lesion raises the loss least first."""
        return np.argsort(self.loss, kind="stable")

    @property
    def damage(self) -> np.ndarray:
        """(layers,) how much each lesion raises the loss; 0 where it lowers it, or by next to nothing."""
        rise = self.loss - self.intact_loss
        # float32's rounding alone makes a loss differ in its fifth or sixth digit.
        return np.where(rise <= 1e-4 * abs(self.intact_loss), 0, rise)


class Dropped(NamedTuple):
    """A network's performance with several layers at once made the identity.

    Attributes:
      order: (layers,) layer indices in the order in which they were dropped.
      loss: (layers + 1,) mean loss without the first k of them, k = 0 to all.
      error: (layers + 1,) mean error; both as in `Lesions`.
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
    """Biases and activity of a network's transform gates: overall, per class, per sample.

    Args:
      model: a Linen or an NNX module. It is called in evaluation mode, and an NNX module stays as it is.
      variables: of Linen its `params` collection alone, or all variables, such as `{"params": ..., "batch_stats":
        ...}` (a key `params` tells them apart: Flax applies no module that has a part of this name); of NNX nested
        dicts or an `nnx.State`, which may lack what the module has, or None for the module's own.
        `population.fit(...).best.variables` are such.
      split: n samples, a dict of arrays with one leading axis: `x`, and whatever else `forward` wants. `y` are the
        classes if they are (n,) integers.
      preprocess: turns stored images, `x`, into the network's input.
      forward: `forward(model, batch, train)`, what the model is called with, as in `population.supervised`. By default
        `batch["x"]`, with `train=` or `deterministic=` if it takes them.
      batch_size: samples taken at a time, which bounds memory.

    Raises:
      TypeError: if the model is no Flax module.
      ValueError: if the model has no highway layers, an NNX module does not have these variables, or the split's arrays
        differ in length.
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
            known = jnp.isfinite(gate)  # of a NaN, another class's zero would make a NaN
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
    known = slice(0 if labels is None else None)
    return GateStatistics(
        bias=_table(biases),
        mean=by_class.sum(axis=0) / size.sum(),
        open_fraction=_table([layer / size.sum() for layer in opened]),
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
    """Gates and block outputs for a single sample (Figure 2, right half).

    Args:
      model, variables, preprocess, forward: as in `gate_statistics`.
      image: (height, width, channels), or whatever shape one sample has; or a dict of such, if `forward` wants more
        than `x`.

    Raises:
      TypeError, ValueError: as in `gate_statistics`.
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
    """Close all the transform gates of one layer, for every layer, and evaluate the network (Figure 4).

    All lesions are one compiled call, split over the mesh's devices. A device takes its share of them through a batch
    in lockstep: memory grows with `batch_size` times lesions per device.

    Args:
      model, variables, split, preprocess, forward: as in `gate_statistics`.
      loss: `loss(outputs, batch)`, (batch,), a number for every example.
      error: likewise. By default whether an example is misclassified, if `loss` is cross entropy, and otherwise NaN.
      batch_size: samples taken at a time.
      mesh: from `parallel.runs_mesh`; all devices by default.

    Raises:
      TypeError: if the model is no Flax module.
      ValueError: as in `gate_statistics`, if a layer cannot be closed, if loss or error have another shape, and if the
        loss is cross entropy but the outputs are not logits or `y` are not labels.
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
    """Close the gates of more and more layers and evaluate the network each time.

    Args:
      model, variables, split, loss, error, preprocess, forward, batch_size, mesh: as in `lesion`, which it equals in
        cost.
      order: layer indices, the first to be dropped first: `Lesions.order`, say.

    Raises:
      TypeError, ValueError: as in `lesion`, or if `order` is not a permutation of the layers.
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
    """How many layers matter, from what each one's lesion costs: the exponential of the entropy of their shares.

    With p_l the l-th layer's share of the total damage, it is exp(-sum_l p_l log p_l): k where k layers do equal damage
    and the others none. 0 if there is no damage; NaN if some damage is not finite.

    Args:
      damage: (layers,) at least 0, as `Lesions.damage`.
    """
    if not damage.any():
        return 0.0
    share = damage / damage.sum()
    return float(np.exp(-np.sum(share * np.log(np.where(share == 0, 1, share)))))


def close_gates(model: Any, variables: Any, inputs: Any, closed: Array, *, forward: Forward = call) -> Any:
    """Make highway layers the identity: T = 0 exactly, and C = 1 where the carry gate is independent (Eq. 4).

    A layer that changes its input's size still does, by zero-padding or sub-sampling alone.

    Args:
      model, variables, forward: as in `gate_statistics`.
      inputs: a batch of the network's input, of which only shape and dtype matter; or a dict of arrays, if `forward`
        wants more than `x`.
      closed: (layers,) bool, which layers; may be traced, so that lesions can be mapped.

    Returns:
      Of Linen the variables or parameters, as they were given, of which biases have changed: to minus infinity for T,
      to infinity for C. A `Highway` with a T or C of its own, which need not have biases, gets a further parameter
      instead, `closed`. Of NNX a new module, in evaluation mode.

    Raises:
      TypeError: if the model is no Flax module.
      ValueError: as in `gate_statistics`, or if a layer cannot be closed.
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
    """Mean loss and error with the gates of some layers closed: (masks,) each, for masks (masks, layers)."""
    if loss is cross_entropy and _labels(split) is None:
        raise ValueError("split has no labels, (n,) integers y from 0 on; for what has none, give a loss of its own")
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
                raise ValueError(f"the network gives a {type(outputs).__name__}, not logits; forward can choose them")
            losses = _scores("loss", loss(outputs, batch), len(real))
            errors = jnp.where(jnp.isfinite(losses), _scores("error", error(outputs, batch), len(real)), jnp.nan)
            return sums + jnp.stack([losses, errors]).sum(axis=-1, where=real), None

        return lax.scan(step, jnp.zeros(2), batches)[0]

    masks = len(closed)
    closed = np.pad(closed, [(0, parallel.padded(masks, mesh) - masks), (0, 0)])
    # In lockstep the lesions share the kernels, so that a product takes lesions and samples as its rows.
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
    """A loss or an error of every example, in float32 at least."""
    values = jnp.asarray(values)
    if values.shape != (size,):
        raise ValueError(
            f"{name} is of shape {values.shape} for a batch of {size}; it must be ({size},), a number for every example"
        )
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def _arrays(split: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A split's arrays on the host.

    Raises:
      TypeError, ValueError: if it is no mapping, or they have no leading axis of samples in common.
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
    """A split's classes, (n,) integers from 0 on, if its `y` are such."""
    labels = split.get("y")
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.min() < 0:
        return None
    return labels


def _one(split: Mapping[str, np.ndarray], preprocess: Preprocess) -> Any:
    """Shapes and dtypes of a batch of one sample, as the network meets it."""
    shapes = {
        name: jax.ShapeDtypeStruct((1, *array.shape[1:]), jax.dtypes.canonicalize_dtype(array.dtype))
        for name, array in split.items()
    }
    return jax.eval_shape(lambda batch: _prepared(batch, preprocess), shapes)


def _prepared(batch: Mapping[str, Any], preprocess: Preprocess) -> dict[str, Any]:
    return {**batch, "x": preprocess(batch["x"])}


def _batches(trees: tuple[Any, ...], batch_size: int) -> tuple[Any, ...]:
    """Samples in order, and which of them are real: leaves with leading axes (steps, batch_size).

    The last batch is filled up with the last sample, so that `preprocess` and network get real samples alone.
    """
    samples = len(jax.tree.leaves(trees)[0])
    size = min(batch_size, samples)

    def cut(array: Array, filler: Any) -> np.ndarray:
        filled = np.concatenate([array, np.repeat(filler, -samples % size, axis=0)])
        return filled.reshape(-1, size, *filled.shape[1:])

    real = cut(np.ones(samples, bool), np.zeros(1, bool))
    return *jax.tree.map(lambda array: cut(array, array[-1:]), trees), real


def _table(rows: Sequence[Array]) -> np.ndarray:
    """Rows of any lengths as one array, filled up with NaN."""
    table = np.full((len(rows), max(map(len, rows))), np.nan, np.float32)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row
    return table


def _network(model: Any, variables: Any, batch: Any, forward: Forward) -> Network:
    """The network that a model is with some variables.

    Args:
      model: a Linen or an NNX module.
      variables: its own; see `gate_statistics`.
      batch: one example, of which only shapes and dtypes matter.
      forward: `forward(model, batch, train)`, what the model is called with.

    Raises:
      TypeError: if it is no Flax module.
      ValueError: if it has no highway layers, or is not of these variables.
    """
    if isinstance(model, nn.Module):
        return LinenNetwork(model, variables, batch, forward)
    from flax import nnx  # which Linen's users need not wait for

    from highway_jax.analysis.nnx_models import NNXNetwork

    if isinstance(model, nnx.Module):
        return NNXNetwork(model, variables, batch, forward)
    raise TypeError(f"model is an object of type {type(model).__name__}; it must be a Linen or an NNX module")

"""What a trained highway network does inside: gates, routing, lesions, depth in use (Section 4).

Pure functions of (model, params, data) for any Linen module that contains highway layers: an `MLP`, a `ConvNet`, or a
network of one's own of `HighwayDense` and `HighwayConv`. Results are NumPy arrays with one row per highway layer, in
the order in which the network applies them; feature maps are averaged over space. Where layers differ in width, a
narrow layer's row ends in NaN. Images are given as stored; `preprocess` turns them into the network's input, as in a
`training.Recipe`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from jax.sharding import Mesh

from highway_jax import parallel
from highway_jax.data import Array, Split

Preprocess = Callable[[Array], Array]
Path = tuple[str, ...]

# The biases that make T = 0 and C = 1 exactly, and so a layer the identity (Eq. 4); coupled gates need only T's.
CLOSED = {"t": -jnp.inf, "c": jnp.inf}


class InnerStates(NamedTuple):
    """What every block of every highway layer does with one sample; each of shape (layers, blocks)."""

    block_state: np.ndarray
    transform_gate: np.ndarray
    carry_gate: np.ndarray
    block_output: np.ndarray


class GateStatistics(NamedTuple):
    """The transform gates over a dataset (Figures 2 and 3).

    Attributes:
      bias: (layers, blocks) the gates' biases b_T.
      mean: (layers, blocks) their mean output over all samples.
      class_mean: (classes, layers, blocks) their mean output over each class; NaN for a class without samples.
      class_size: (classes,) number of samples.
      open_layers: (n,) how many layers' worth of transformation each sample gets: the sum over layers of its
        gates' mean output over the layer's blocks, from 0 to the number of layers.
    """

    bias: np.ndarray
    mean: np.ndarray
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
      loss: (layers,) mean cross entropy (nats) without this layer.
      error: (layers,) fraction of samples misclassified without this layer; NaN where the loss is not finite.
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
        """(layers,) how much each lesion raises the loss (nats); 0 where it lowers it, or by next to nothing."""
        rise = self.loss - self.intact_loss
        # float32's rounding alone makes a loss differ in its fifth or sixth digit.
        return np.where(rise <= 1e-4 * self.intact_loss, 0, rise)


class Dropped(NamedTuple):
    """A network's performance with several layers at once made the identity.

    Attributes:
      order: (layers,) layer indices in the order in which they were dropped.
      loss: (layers + 1,) mean cross entropy (nats) without the first k of them, k = 0 to all.
      error: (layers + 1,) fraction of samples misclassified; NaN where the loss is not finite.
    """

    order: np.ndarray
    loss: np.ndarray
    error: np.ndarray


def gate_statistics(
    model: nn.Module,
    params: Any,
    split: Split,
    *,
    preprocess: Preprocess = jnp.asarray,
    batch_size: int = 1000,
) -> GateStatistics:
    """Biases and activity of a network's transform gates: overall, per class, per sample.

    Args:
      model, params: the network and its `params` collection.
      split: n samples.
      preprocess: turns stored images into the network's input.
      batch_size: samples taken at a time, which bounds memory.

    Raises:
      ValueError: if the model has no highway layers.
    """
    paths = _paths(model, params, _inputs(split.images, preprocess))
    num_classes = int(np.max(split.labels)) + 1

    def step(sums, batch):
        gates = [state["transform_gate"] for state in _states(model, params, preprocess(batch.images), paths)]
        of_class = jax.nn.one_hot(batch.labels, num_classes)  # all zero for a sample that only fills up the batch
        add = [jnp.einsum("nc,nb->cb", of_class, gate, precision="float32") for gate in gates]
        return jax.tree.map(jnp.add, sums, add), sum(gate.mean(axis=-1) for gate in gates)

    biases = _biases(params, paths)
    start = [jnp.zeros((num_classes, len(bias))) for bias in biases]
    sums, open_layers = jax.jit(lambda batches: lax.scan(step, start, batches))(_batches(split, batch_size))
    by_class = np.stack([_table(layers) for layers in zip(*sums, strict=True)])
    size = np.bincount(split.labels, minlength=num_classes)
    with np.errstate(invalid="ignore"):
        class_mean = by_class / size[:, None, None]
    return GateStatistics(
        bias=_table(biases),
        mean=by_class.sum(axis=0) / size.sum(),
        class_mean=class_mean,
        class_size=size,
        open_layers=np.asarray(open_layers).reshape(-1)[: size.sum()],
    )


def inner_states(model: nn.Module, params: Any, image: Array, *, preprocess: Preprocess = jnp.asarray) -> InnerStates:
    """Gates and block outputs for a single sample (Figure 2, right half).

    Args:
      model, params, preprocess: as in `gate_statistics`.
      image: (height, width, channels), or whatever shape one sample has.

    Raises:
      ValueError: if the model has no highway layers.
    """
    images = np.asarray(image)[None]
    paths = _paths(model, params, _inputs(images, preprocess))
    states = jax.jit(lambda images: _states(model, params, preprocess(images), paths))(images)
    return InnerStates(*(_table([state[name][0] for state in states]) for name in InnerStates._fields))


def lesion(
    model: nn.Module,
    params: Any,
    split: Split,
    *,
    preprocess: Preprocess = jnp.asarray,
    batch_size: int = 100,
    mesh: Mesh | None = None,
) -> Lesions:
    """Close all the transform gates of one layer, for every layer, and evaluate the network (Figure 4).

    All lesions are one compiled call, split over the mesh's devices. A device takes its share of them through a batch
    in lockstep: memory grows with `batch_size` times lesions per device.

    Args:
      model, params, split, preprocess: as in `gate_statistics`.
      batch_size: samples taken at a time.
      mesh: from `parallel.runs_mesh`; all devices by default.

    Raises:
      ValueError: if the model has no highway layers.
    """
    layers = len(_biases(params, _paths(model, params, _inputs(split.images, preprocess))))
    closed = np.eye(layers + 1, layers, dtype=bool)  # the last row is the whole network
    loss, error = _evaluate(model, params, split, closed, preprocess, batch_size, mesh)
    return Lesions(loss[:-1], error[:-1], float(loss[-1]), float(error[-1]))


def drop_layers(
    model: nn.Module,
    params: Any,
    split: Split,
    order: Sequence[int] | np.ndarray,
    *,
    preprocess: Preprocess = jnp.asarray,
    batch_size: int = 100,
    mesh: Mesh | None = None,
) -> Dropped:
    """Close the gates of more and more layers and evaluate the network each time.

    Args:
      model, params, split, preprocess, batch_size, mesh: as in `lesion`, which it equals in cost.
      order: layer indices, the first to be dropped first: `Lesions.order`, say.

    Raises:
      ValueError: if the model has no highway layers, or `order` is not a permutation of them.
    """
    layers = len(_biases(params, _paths(model, params, _inputs(split.images, preprocess))))
    order = np.asarray(order)
    if sorted(order.tolist()) != list(range(layers)):
        raise ValueError(f"order is {order.tolist()}; it must hold each of the layers 0 to {layers - 1} once")
    closed = np.argsort(order) < np.arange(layers + 1)[:, None]
    loss, error = _evaluate(model, params, split, closed, preprocess, batch_size, mesh)
    return Dropped(order, loss, error)


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


def close_gates(model: nn.Module, params: Any, inputs: Any, closed: Array) -> Any:
    """Make highway layers the identity: T = 0 exactly, and C = 1 where the carry gate is independent (Eq. 4).

    A layer that changes its input's size still does, by zero-padding or sub-sampling alone.

    Args:
      model, params: the network and its parameters.
      inputs: a batch of the network's input, of which only shape and dtype matter.
      closed: (layers,) bool, which layers; may be traced, so that lesions can be mapped.

    Returns:
      The parameters, of which only biases have changed: to minus infinity for T, to infinity for C.

    Raises:
      ValueError: if the model has no highway layers.
    """
    flat, first = dict(flatten_dict(params)), 0
    for path in _paths(model, params, inputs):
        layer = _at(params, path)
        biases = _split_biases(layer)
        count = len(jnp.atleast_2d(biases["t"]))
        here = closed[first : first + count].reshape(-1, 1) if _is_stack(layer) else closed[first]
        first += count
        biases |= {name: jnp.where(here, bias, biases[name]) for name, bias in CLOSED.items() if name in biases}
        if "t" in layer:
            flat |= {(*path, name, "bias"): bias for name, bias in biases.items()}
        else:
            flat[(*path, "bias")] = jnp.concatenate(list(biases.values()), axis=-1)
    return unflatten_dict(flat)


# A network's highway layers are found where they sow their states, and known by their modules' paths. A module may hold
# one layer (`HighwayDense`) or a stack of them with a leading axis on every parameter (`MLP`, `nn.scan`).


def _paths(model: nn.Module, params: Any, inputs: Any) -> list[Path]:
    """Paths of the modules that hold highway layers, in the order of application."""
    order: dict[Path, int] = {}

    def note(call, args, kwargs, context):
        order.setdefault(context.module.path, len(order))
        return call(*args, **kwargs)

    def trace(params, inputs):
        with nn.intercept_methods(note):
            return model.apply({"params": params}, inputs, mutable="intermediates")[1]

    sown = flatten_dict(jax.eval_shape(trace, params, inputs).get("intermediates", {}))
    # A traced function's dicts come back with sorted keys, "layer10" before "layer2"; its calls are in order.
    paths = sorted((path[:-1] for path in sown if path[-1] == "transform_gate"), key=order.__getitem__)
    if not paths:
        raise ValueError(f"this {type(model).__name__} has no highway layers, so there are no gates to look at")
    for path in paths:
        if len(sown[(*path, "transform_gate")]) > 1:
            raise ValueError(f"layer {'/'.join(path)!r} is applied more than once, so it has no place in the order")
    return paths


def _inputs(images: Array, preprocess: Preprocess) -> Any:
    """Shape and dtype of the network's input for a single image."""
    return jax.eval_shape(preprocess, jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype))


def _states(model: nn.Module, params: Any, inputs: Array, paths: Sequence[Path]) -> list[dict[str, jax.Array]]:
    """The inner states of each highway layer by name, (batch, blocks)."""
    sown = flatten_dict(model.apply({"params": params}, inputs, mutable="intermediates")[1]["intermediates"])
    layers: list[dict[str, jax.Array]] = []
    for path in paths:
        stacked = _is_stack(_at(params, path))
        states = {name: sown[(*path, name)][0] for name in InnerStates._fields}
        states = {name: s.mean(axis=tuple(range(1 + stacked, s.ndim - 1))) for name, s in states.items()}
        if stacked:
            count = len(states["transform_gate"])
            layers += [{name: state[index] for name, state in states.items()} for index in range(count)]
        else:
            layers.append(states)
    return layers


def _at(params: Any, path: Path) -> Any:
    for key in path:
        params = params[key]
    return params


def _split_biases(layer: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Biases of H, T (and C) by name, (layers, blocks) or (blocks,), kept apart or fused (`MLP`)."""
    if "t" in layer:
        return {name: affine["bias"] for name, affine in layer.items() if "bias" in affine}
    width = layer["kernel"].shape[-2]
    parts = layer["bias"].shape[-1] // width
    return dict(zip("htc"[:parts], jnp.split(layer["bias"], parts, axis=-1), strict=True))


def _is_stack(layer: Mapping[str, Any]) -> bool:
    return _split_biases(layer)["t"].ndim == 2


def _biases(params: Any, paths: Sequence[Path]) -> list[jax.Array]:
    """Each layer's transform-gate biases, (blocks,)."""
    biases = [_split_biases(_at(params, path))["t"] for path in paths]
    return [row for bias in biases for row in jnp.atleast_2d(bias)]


def _evaluate(
    model: nn.Module,
    params: Any,
    split: Split,
    closed: np.ndarray,
    preprocess: Preprocess,
    batch_size: int,
    mesh: Mesh | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean loss and error with the gates of some layers closed: (masks,) each, for masks (masks, layers)."""
    mesh = parallel.runs_mesh() if mesh is None else mesh
    inputs = _inputs(split.images, preprocess)

    def evaluate(closed, params, batches):
        params = close_gates(model, params, inputs, closed)

        def step(sums, batch):
            outputs = model.apply({"params": params}, preprocess(batch.images))
            assert isinstance(outputs, jax.Array)  # no collection is mutable, so there is nothing else
            loss = optax.softmax_cross_entropy_with_integer_labels(outputs, batch.labels)
            wrong = jnp.where(jnp.isfinite(loss), outputs.argmax(axis=-1) != batch.labels, jnp.nan)
            return sums + jnp.stack([loss, wrong]).sum(axis=-1, where=batch.labels >= 0), None

        return lax.scan(step, jnp.zeros(2), batches)[0]

    masks = len(closed)
    closed = np.pad(closed, [(0, parallel.padded(masks, mesh) - masks), (0, 0)])
    # In lockstep the lesions share the kernels, so that a product takes lesions and samples as its rows.
    mapped = jax.jit(parallel.map_runs(evaluate, mesh, runs_per_batch=len(closed)))
    sums = mapped(parallel.split_runs(mesh, closed), *parallel.replicate(mesh, (params, _batches(split, batch_size))))
    loss, error = np.asarray(sums)[:masks].T / len(split.labels)
    return loss, error


def _batches(split: Split, batch_size: int) -> Split:
    """The samples in order, leaves with leading axes (steps, batch_size); the last batch is filled up with label -1."""
    samples = len(split.labels)
    size = min(batch_size, samples)

    def cut(array: Array, fill: int) -> np.ndarray:
        array = np.asarray(array)
        rest = np.full((-samples % size, *array.shape[1:]), fill, array.dtype)
        return np.concatenate([array, rest]).reshape(-1, size, *array.shape[1:])

    return Split(cut(split.images, 0), cut(split.labels, -1))


def _table(rows: Sequence[Array]) -> np.ndarray:
    """Rows of any lengths as one array, filled up with NaN."""
    table = np.full((len(rows), max(map(len, rows))), np.nan, np.float32)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row
    return table

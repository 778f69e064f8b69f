"""How a Flax model of Linen or NNX is called on a batch."""

import inspect
from collections.abc import Callable
from typing import Any

Forward = Callable[[Any, Any, bool], Any]  # of a model, a batch, and whether it is training
TRANSIENT = ("intermediates", "perturbations")  # Linen collections that belong to a single call


def call(model: Any, batch: Any, train: bool) -> Any:
    """Call a model with `batch["x"]`, and with `train=` or `deterministic=` if it takes them."""
    takes = inspect.signature(model.__call__).parameters
    options: dict[str, bool] = {}
    if "train" in takes:
        options["train"] = train
    if "deterministic" in takes:
        options["deterministic"] = not train
    return model(batch["x"], **options)

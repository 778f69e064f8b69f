"""How a Flax model, Linen or NNX, is called on a batch."""

import inspect
from collections.abc import Callable
from typing import Any

Forward = Callable[[Any, Any, bool], Any]  # of a model, a batch, and whether it trains
TRANSIENT = ("intermediates", "perturbations")  # Linen's collections that tell of one call


def call(model: Any, batch: Any, train: bool) -> Any:
    """What a model gives for `batch["x"]`, told by `train=` or `deterministic=` whether it trains, if it takes them."""
    takes = inspect.signature(model.__call__).parameters
    options: dict[str, bool] = {}
    if "train" in takes:
        options["train"] = train
    if "deterministic" in takes:
        options["deterministic"] = not train
    return model(batch["x"], **options)

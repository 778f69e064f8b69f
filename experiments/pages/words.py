"""Numbers and lists in words."""

from collections.abc import Iterable
from typing import Any

import numpy as np


def listed(items: Iterable[Any]) -> str:
    """Such as "a, b and c"."""
    *most, last = map(str, items)
    return f"{', '.join(most)} and {last}" if most else last


def best_mean_std(accuracy: np.ndarray) -> str:
    """Runs' accuracies in percent as the paper's tables have them: "best (mean ± standard deviation)", or the only one.

    The deviation is the sample's (n - 1). A run that has diverged leaves its mark on the mean: nan.
    """
    percent = 100 * np.asarray(accuracy, np.float64)
    if len(percent) == 1:
        return f"{percent[0]:.2f}"
    best = np.nanmax(percent) if np.isfinite(percent).any() else np.nan
    return f"{best:.2f} ({percent.mean():.2f} ± {percent.std(ddof=1):.2f})"

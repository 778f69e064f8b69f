"""The analysis of trained highway networks and its figures (Section 4)."""

from highway_jax.analysis.networks import (
    Dropped,
    GateStatistics,
    InnerStates,
    Lesions,
    close_gates,
    drop_layers,
    effective_layers,
    gate_statistics,
    inner_states,
    lesion,
)
from highway_jax.analysis.summary import Analysis, summarize

__all__ = [
    "Analysis",
    "Dropped",
    "GateStatistics",
    "InnerStates",
    "Lesions",
    "close_gates",
    "drop_layers",
    "effective_layers",
    "gate_statistics",
    "inner_states",
    "lesion",
    "summarize",
]

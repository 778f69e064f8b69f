"""Kernels in C++ and CUDA, which the machine's compiler builds on first use."""

from highway_jax.native.library import COMPILERS, Library, NoCompiler, Unavailable, for_cpu

__all__ = ["COMPILERS", "IMPLEMENTATIONS", "Library", "NoCompiler", "Unavailable", "check_implementation", "for_cpu"]

IMPLEMENTATIONS = ("xla", "fused")  # XLA only, or with these kernels


def check_implementation(name: str) -> None:
    """Reject a name that is not in `IMPLEMENTATIONS`.

    Raises:
      ValueError: if the name is unknown.
    """
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation is {name!r}; it must be {' or '.join(map(repr, IMPLEMENTATIONS))}")

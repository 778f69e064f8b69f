"""Kernels of our own in C++ and CUDA, which the machine's compiler builds when they are first needed."""

from highway_jax.native.library import COMPILERS, Library, NoCompiler, Unavailable, for_cpu

__all__ = ["COMPILERS", "IMPLEMENTATIONS", "Library", "NoCompiler", "Unavailable", "check_implementation", "for_cpu"]

IMPLEMENTATIONS = ("xla", "fused")  # by XLA alone, or by these kernels


def check_implementation(name: str) -> None:
    """Refuse a name that is none of `IMPLEMENTATIONS`.

    Raises:
      ValueError: naming it.
    """
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation is {name!r}; it must be {' or '.join(map(repr, IMPLEMENTATIONS))}")

"""What JAX is told before anything is trained or analyzed, whatever the environment says: what decides results."""

import os
import re

import jax

from experiments.app import errors
from experiments.app.errors import UserError
from highway_jax.files import first_line

PINNED = {
    # They change which random numbers a key gives.
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    # They change dtypes, and with them draws and rounding.
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    # They turn what is no error here into one: a run that diverges, arrays that are broadcast or moved.
    "jax_debug_nans": False,
    "jax_debug_infs": False,
    "jax_numpy_rank_promotion": "allow",
    "jax_debug_key_reuse": False,
    "jax_transfer_guard": None,
    # Without compilation nothing here is as it is recorded.
    "jax_disable_jit": False,
}
FAST_MATH = re.compile(r"--xla_\w*fast_math(?!=false)\b")


def pin() -> None:
    """Set what decides results; says so where the environment has it otherwise.

    Raises:
      UserError: for a compiler that may take NaN for a number, so that a run that has diverged goes unseen, and where
        JAX finds no device.
    """
    if fast := FAST_MATH.search(os.environ.get("XLA_FLAGS", "")):
        raise UserError(f"XLA_FLAGS has {fast[0]}, with which runs that diverge go unseen; it must be without it")
    for name, value in PINNED.items():
        if (there := getattr(jax.config, name)) != value:
            errors.warn(f"{name.upper()} is {there}; results here are always of {value}")
        jax.config.update(name, value)
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        platforms, details = os.environ.get("JAX_PLATFORMS", ""), f": {first_line(error)}" if str(error) else ""
        raise UserError(f"JAX finds no device; JAX_PLATFORMS is {platforms!r}{details}") from error

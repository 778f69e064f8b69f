"""The JAX settings that decide results. Programs that train or analyze set them, whatever the environment says."""

import os
import re

import jax

from experiments.app import errors
from experiments.app.errors import UserError
from highway_jax.files import first_line

PINNED = {
    # These change the random numbers of a key.
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    # These change dtypes, and with them random numbers and rounding.
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    # These raise errors for things that are fine here: runs that diverge, arrays that are broadcast or transferred.
    "jax_debug_nans": False,
    "jax_debug_infs": False,
    "jax_numpy_rank_promotion": "allow",
    "jax_debug_key_reuse": False,
    "jax_transfer_guard": None,
    # Without compilation, results would differ from the recorded ones.
    "jax_disable_jit": False,
}
FAST_MATH = re.compile(r"--xla_\w*fast_math(?!=false)\b")


def pin() -> None:
    """Set what decides results, and warn about every setting of the environment that is overridden.

    Raises:
      UserError: if XLA_FLAGS lets the compiler ignore NaN, since diverged runs would go unnoticed, or if JAX finds no
        device.
    """
    if fast := FAST_MATH.search(os.environ.get("XLA_FLAGS", "")):
        raise UserError(f"XLA_FLAGS has {fast[0]}, with which diverged runs go unnoticed; remove it")
    for name, value in PINNED.items():
        if (there := getattr(jax.config, name)) != value:
            errors.warn(f"{name.upper()} is {there}, which is ignored; the programs always use {value}")
        jax.config.update(name, value)
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        platforms, details = os.environ.get("JAX_PLATFORMS", ""), f": {first_line(error)}" if str(error) else ""
        raise UserError(f"JAX finds no device; JAX_PLATFORMS is {platforms!r}{details}") from error

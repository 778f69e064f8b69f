"""What JAX is told before anything is trained or analyzed, whatever the environment says: what decides results."""

import jax

from experiments import cli

PINNED = {
    # They change which random numbers a key gives.
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    # They change dtypes, and with them draws and rounding.
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    # They turn what is no error here into one: a run that diverges, arrays that are broadcast.
    "jax_debug_nans": False,
    "jax_debug_infs": False,
    "jax_numpy_rank_promotion": "allow",
}


def pin() -> None:
    """Set what decides results; says so where the environment has it otherwise."""
    for name, value in PINNED.items():
        if (there := getattr(jax.config, name)) != value:
            cli.warn(f"{name.upper()} is {there}; results here are always of {value}")
        jax.config.update(name, value)

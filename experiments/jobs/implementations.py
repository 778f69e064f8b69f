"""Choose what computes the layers of a config's networks on this machine: XLA or our own kernels."""

from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from experiments.app import errors
from experiments.app.errors import UserError
from experiments.app.output import say
from experiments.jobs.job import find_devices
from highway_jax import native, parallel
from highway_jax.functional import direct
from highway_jax.stack import fused, kinds


def choose_implementations(
    config: ConfigDict, networks: Sequence[str], earlier: Mapping[str, str] | None = None
) -> dict[str, str]:
    """What computes the layers of each kind of network: "fused" or "xla".

    The answer is the same in all processes, and all of them must call this function.

    Args:
      config: the config, checked.
      networks: the kinds of network.
      earlier: what computed their layers in the work that is resumed or repeated, which "auto" follows; None for new
        work.

    Raises:
      UserError: if the config asks for kernels that cannot be had.
    """
    platform = fused.here()
    kernels = [platform is not None and _wants(config, network, platform, earlier) for network in networks]
    if platform and any(kernels) and not _are_loaded(config, platform):
        kernels = [False] * len(networks)
    everywhere = parallel.agree(*kernels).min(axis=0).tolist()
    return {network: "fused" if agreed else "xla" for network, agreed in zip(networks, everywhere, strict=True)}


def _wants(config: ConfigDict, network: str, platform: str, earlier: Mapping[str, str] | None) -> bool:
    """Whether kernels should compute this kind of network, if they can be built."""
    is_search = "search" in config
    exist = fused.supports(kinds.named(network)) if is_search else platform == fused.CPU
    if config.implementation == "xla" or not exist:
        return False
    fits = not is_search or config.width[network] <= fused.WIDEST[platform]
    if not fits and platform == fused.GPU:
        if config.implementation == "auto":
            return False
        raise UserError(
            f"config.implementation is 'fused', but config.width.{network} is {config.width[network]}; "
            f"on a GPU it must be at most {fused.WIDEST[platform]}"
        )
    if config.implementation == "fused":
        return True
    if earlier is not None:
        return earlier.get(network) == "fused"
    return fits and find_devices(config).shape[parallel.DATA] == 1  # else each device computes whole batches


def _are_loaded(config: ConfigDict, platform: str) -> bool:
    """Whether the kernels can be built and loaded."""
    try:
        library = fused.library(platform) if "search" in config else direct.library()
        if library.needs_build():
            say("building kernels with the machine's compiler; this takes some seconds, once")
        library.load()
    except native.Unavailable as reason:
        if config.implementation == "fused":
            raise UserError(f"config.implementation is 'fused', but {reason}; 'xla' needs no kernels") from reason
        if not isinstance(reason, native.NoCompiler):
            errors.warn(f"XLA alone computes the layers, which takes two or three times as long: {reason}")
        return False
    return True

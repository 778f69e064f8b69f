"""What decides the results in a workdir, and the software and hardware that made them."""

import dataclasses
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.app import errors
from experiments.app.errors import UserError
from experiments.configs.keys import leaves
from experiments.workdir.files import FORMAT
from highway_jax import __version__, parallel

# Config keys that decide no result.
FREE = ("data_dir", "resume", "checkpoint_every", "log_every", "tensorboard")
# Config keys for how devices share the work. `provenance.json` lists their changes.
SHARING = ("runs_per_batch", "mesh")
CHANGEABLE = (*FREE, *SHARING)  # keys that may change when work is resumed
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")  # whose versions are recorded


@dataclasses.dataclass(frozen=True)
class Identity:
    """What decides results, apart from the versions of the software and the devices.

    Attributes:
      config: the config, checked.
      data_md5: the MD5 of each part of the data, by name.
      implementations: what computes the layers of each kind of network.
    """

    config: ConfigDict
    data_md5: Mapping[str, str]
    implementations: Mapping[str, str]

    def of(self, network: str) -> dict[str, Any]:
        """Everything by name for one kind of network, as JSON values."""
        config = leaves(as_json(self.config)).items()
        return {
            "format": FORMAT,
            "network": network,
            **{f"config.{key}": value for key, value in config if key not in CHANGEABLE},
            **{f"data_md5.{name}": value for name, value in self.data_md5.items()},
            **{f"implementations.{name}": value for name, value in self.implementations.items()},
        }

    def fingerprint(self) -> str:
        """A digest of everything."""
        return hashlib.sha256(json.dumps(self.of(""), sort_keys=True).encode()).hexdigest()


def as_json(config: ConfigDict) -> dict[str, Any]:
    """A config as a workdir holds it: written as JSON and read back."""
    return json.loads(config.to_json())


def check_config(workdir: Path, there: ConfigDict, now: ConfigDict) -> None:
    """Refuse to resume work with another config.

    Raises:
      UserError: if keys differ; the message names them.
    """
    is_search, wanted = ("search" in config for config in (there, now))
    if is_search != wanted:
        holds, wants = (("a search" if search else "a training") for search in (is_search, wanted))
        raise UserError(f"--workdir is {str(workdir)!r}, which holds {holds}, not {wants}; choose another --workdir")
    tables = leaves(there), leaves(as_json(now))
    before, after = ({key: value for key, value in t.items() if key not in CHANGEABLE} for t in tables)
    changed = [
        f"{key} ({before.get(key)} there, {after.get(key)} now)"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    if changed:
        raise UserError(
            f"--workdir is {str(workdir)!r}, which holds work of another config: {', '.join(changed)}; "
            "choose another --workdir"
        )


def check_identity(workdir: Path, about: Mapping[str, Any], identity: Identity) -> None:
    """Refuse to resume work with other data or another implementation of layers; `about` is its provenance."""
    check_data(workdir, about, identity.data_md5)
    for network, now in identity.implementations.items():
        there = about.get("implementations", {}).get(network, now)
        if there != now:
            raise UserError(
                f"workdir {str(workdir)!r}: the implementation of its {network} layers is {there!r}, here it is "
                f"{now!r}; resume it on a machine of the same kind, or choose another --workdir"
            )


def check_data(workdir: Path, about: Mapping[str, Any], data_md5: Mapping[str, str]) -> None:
    """Refuse data other than those of a workdir.

    Args:
      workdir: the workdir.
      about: its `provenance.json`.
      data_md5: the MD5 of each part of the data here, by name.

    Raises:
      UserError: if a part differs; the message names it.
    """
    for name, now in data_md5.items() if about else ():
        there = about.get("data_md5", {}).get(name)
        if there is None:
            errors.warn(f"{workdir / 'provenance.json'} does not record the MD5 of {name!r}; the data here may differ")
        elif there != now:
            raise UserError(
                f"workdir {str(workdir)!r} was made with other data: the MD5 of {name!r} is {there} there, {now} here; "
                "TFDS_DATA_DIR, the data_dir flag or the config file decides which data are read"
            )


def provenance(mesh: Mesh, runs_per_batch: int | None) -> dict[str, Any]:
    """The provenance of a process: commit, versions, hardware, and how runs and batches are split over devices.

    Args:
      mesh: the devices.
      runs_per_batch: the config's value.
    """
    devices = jax.devices()
    return {
        "format": FORMAT,
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {"highway-jax": __version__, **{name: version(name) for name in PACKAGES}},
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "processes": jax.process_count(),
        "cpu_cores": parallel.cpu_cores(),
        "mesh": list(mesh.devices.shape),
        "runs_per_batch": runs_per_batch,
        "xla_flags": os.environ.get("XLA_FLAGS"),
    }


def _commit() -> str | None:
    """The code's commit, marked if the code has changed since; None outside a clone, such as in site-packages."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        # A venv may lie inside another project's repository.
        git("ls-files", "--error-unmatch", "--", "experiments/workdir/identity.py")
        changed = git("status", "--porcelain", "--", "highway_jax", "experiments")
        return git("describe", "--always").strip() + "-dirty" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return None

"""How a search is run: the arguments of `fit` that do not change its result."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jax.sharding import Mesh

from highway_jax.files import check_path
from highway_jax.population.arguments import check_function, check_is, set_integer
from highway_jax.population.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Execution:
    """The arguments of `fit` that do not change its result, checked; `fit` documents them.

    Raises:
      ValueError: if an argument has a wrong value; the message names it.
      TypeError: if an argument has a wrong type; the message names it.
    """

    workdir: str | os.PathLike | None = None
    identity: Mapping[str, Any] | None = None
    checkpoint_every: int | None = None
    tables: bool = True
    progress: bool | Callable[[Progress], None] = True
    stop: Callable[[], int] | None = None
    mesh: Mesh | None = None
    runs_in_memory: int | None = None
    runs_per_batch: int | None = None

    def __post_init__(self) -> None:
        for name in "checkpoint_every", "runs_in_memory", "runs_per_batch":
            set_integer(self, name, 1, optional=True)
        if self.mesh is not None:
            check_is("mesh", self.mesh, Mesh, "a mesh, such as parallel.runs_mesh returns")
        if self.stop is not None:
            check_function("stop", self.stop)
        if not isinstance(self.progress, bool):
            check_function("progress", self.progress, "progress")
        if self.workdir is not None:
            check_is("workdir", self.workdir, str | os.PathLike, "a path")
            check_path(self.workdir)
        if self.identity is not None:
            check_is("identity", self.identity, Mapping, "a mapping from names to values that JSON can hold")
            try:
                json.dumps(dict(self.identity))
            except (TypeError, ValueError) as error:
                raise TypeError(f"identity must have values that JSON can hold: {error}") from error

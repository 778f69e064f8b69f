"""Measure what successive halving saves and what it costs: searches with and without it.

    python -m benchmarks.halving --config=digits_depth50
    python -m benchmarks.halving --config=mnist_depth10 --config.num_runs=32 --every=2 --seeds=1

Takes a search's --config flags. --every=N and --keep=SHARE set the halving (by default 5 and 0.5). --seeds=N is the
number of searches of each kind, which take turns. The seconds are those of training, with compilation.
Writes benchmarks/results/halving_PLATFORM_NAME.json.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.app import command_line, entry
from experiments.app.machine import hardware
from experiments.configs import loading

UNCACHED = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "0"}  # every search compiles


def main(argv: list[str]) -> None:
    """Run the searches, print the results, and write the JSON file."""
    values = flags.FlagValues()
    flags.DEFINE_integer("every", 5, "epochs between halvings", lower_bound=1, flag_values=values)
    flags.DEFINE_float("keep", 0.5, "share of the runs that is kept", flag_values=values)
    flags.DEFINE_integer("seeds", 3, "searches of each kind", lower_bound=1, flag_values=values)
    name, overrides, rest = command_line.split_config_flags(argv)
    command_line.parse_flags(rest, values)
    label = loading.load(name, {}).label
    common = [f"--config={name}", *(f"--config.{key}={value}" for key, value in overrides.items())]
    halving = [f"--config.search.halving.every={values.every}", f"--config.search.halving.keep={values.keep}"]
    searches = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(values.seeds):
            for kind, more in ("whole", []), ("halved", halving):
                workdir = Path(folder, f"{kind}{seed}")
                command = [sys.executable, "-m", "experiments.search", *common, *more, f"--config.seed={seed}"]
                subprocess.run([*command, f"--workdir={workdir}"], check=True, stdout=subprocess.DEVNULL, env=UNCACHED)
                searches += outcome(workdir, kind, seed)
    for row in searches:
        print("{kind:6} seed {seed}  {network:8}  best loss {best_loss:.2e}  {seconds:6.1f} s".format(**row))
    shares = [
        halved["seconds"] / whole["seconds"]
        for whole in searches
        for halved in searches
        if (whole["kind"], halved["kind"]) == ("whole", "halved")
        and (whole["seed"], whole["network"]) == (halved["seed"], halved["network"])
    ]
    print(f"time of the halved searches: {np.median(shares):.0%} of the whole ones', median of {len(shares)}")
    settings = {"config": name, "overrides": overrides, "every": values.every, "keep": values.keep}
    path = Path(__file__).parent / "results" / f"halving_{jax.default_backend()}_{label}.json"
    path.write_text(json.dumps({**settings, "searches": searches, "hardware": hardware()}, indent=2) + "\n")


def outcome(workdir: Path, kind: str, seed: int) -> list[dict[str, Any]]:
    """The outcome of a search, as a row for each kind of network."""
    summary = json.loads((workdir / "summary.json").read_text())
    keys = "best_loss", "best_run", "top10_mean_loss", "seconds"
    return [
        {"kind": kind, "seed": seed, "network": network, **{key: found[key] for key in keys}}
        for network, found in summary.items()
    ]


if __name__ == "__main__":
    entry.run(main, __doc__)

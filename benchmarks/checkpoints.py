"""Measure the cost of a search's checkpoints at the default interval.

    python -m benchmarks.checkpoints --config=digits_depth50

Takes a search's --config flags. Runs the search in a new workdir and adds up the time from the start of every save to
its end. Training goes on during a save, so the sum is an upper bound of the cost.
Writes benchmarks/results/checkpoints_PLATFORM_NAME.json.
"""

import json
import tempfile
import time
from pathlib import Path

import jax

from experiments import search
from experiments.app import command_line, entry
from experiments.app.machine import hardware
from highway_jax import checkpoint, parallel
from highway_jax.population import storage


class Timed(checkpoint.Checkpoints):
    """Checkpoints that record the time and size of each save."""

    saves: list[dict[str, float]] = []  # noqa: RUF012

    def _complete(self, path: Path, started: float) -> None:
        super()._complete(path, started)
        size = sum(file.stat().st_size for file in checkpoint.files_in(path))
        self.saves.append({"seconds": round(time.monotonic() - started, 3), "mebibytes": round(size / 2**20, 1)})


def main(argv: list[str]) -> None:
    """Run the search, print the cost, and write the JSON file."""
    name, _, _ = command_line.split_config_flags(argv)
    storage.Checkpoints = Timed  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        search.main([*argv, f"--workdir={folder}/work"])
        seconds = time.monotonic() - started
    cost = sum(save["seconds"] for save in Timed.saves)
    result = {
        "config": name,
        "seconds": round(seconds, 1),
        "saves": Timed.saves,
        "share": cost / seconds,
    }
    print(f"{len(Timed.saves)} checkpoints took {cost:.2f} s of {seconds:.1f} s: {cost / seconds:.2%}")
    path = Path(__file__).parent / "results" / f"checkpoints_{jax.default_backend()}_{name}.json"
    path.write_text(json.dumps({**result, "hardware": hardware()}, indent=2) + "\n")


if __name__ == "__main__":
    parallel.split_cpu()
    entry.run(main, __doc__)

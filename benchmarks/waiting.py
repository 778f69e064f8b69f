"""Measure the time that a search takes besides training.

    python -m benchmarks.waiting --config=digits_depth50
    python -m benchmarks.waiting --config=digits_depth50 --config.epochs=3 --repetitions=3

Takes a search's --config flags. A repetition consists of three searches, each in its own process and workdir: a first
one with an empty cache folder, so that neither Python nor XLA has compiled anything; a second one; and one without
JAX's compilation cache. The parts are seconds of the main thread, none counted twice. "Waiting" is everything except
training and evaluation. Writes the medians to benchmarks/results/waiting_PLATFORM_NAME.json.
"""

import collections
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

SEARCHES = {"first": {}, "second": {}, "uncached": {"JAX_ENABLE_COMPILATION_CACHE": "0"}}
EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "tracing",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "tracing",
    "/jax/core/compile/backend_compile_duration": "compiling",
}
WORK = ("training", "evaluation")


class Parts:
    """Seconds by part. Each second counts once: a part's seconds exclude those of other parts inside it."""

    def __init__(self) -> None:
        self.seconds: collections.Counter[str] = collections.Counter()
        self.programs: collections.Counter[str] = collections.Counter()
        self.cache: collections.Counter[str] = collections.Counter()
        self._inside: list[tuple[float, float]] = []  # starts and lengths

    def add(self, part: str, started: float) -> float:
        """Add the time from `started` until now to a part; returns the seconds added."""
        if threading.current_thread() is not threading.main_thread():
            return 0.0
        length = time.time() - started
        own = length - sum(taken for began, taken in self._inside if began >= started)
        self._inside = [item for item in self._inside if item[0] < started] + [(started, length)]
        self.seconds[part] += own
        return own

    def heard(self, event: str, seconds: float, **about: Any) -> None:
        """Listen to JAX's events of tracing and compilation."""
        if part := EVENTS.get(event):
            own = self.add(part, time.time() - seconds)
            if part == "compiling":
                self.programs[str(about.get("fun_name"))] += own

    def within(self, part: str, owner: Any, name: str) -> None:
        """Have all calls of a function counted as a part."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*args: Any, **options: Any) -> Any:
            started = time.time()
            try:
                return function(*args, **options)
            finally:
                self.add(part, started)

        setattr(owner, name, timed)


def search(started: str, output: str, *flags: str) -> None:
    """Run a search in this process, which began at the time `started`."""
    import builtins

    parts = Parts()
    parts.within("imports", builtins, "__import__")
    import jax

    from experiments import search
    from experiments.app import entry
    from experiments.jobs import datasets, running
    from experiments.jobs.job import Job
    from experiments.workdir import opening, reading, writing
    from highway_jax import native, parallel
    from highway_jax.population import storage, trainer

    parts.add("imports", float(started))
    jax.monitoring.register_event_duration_secs_listener(parts.heard)
    jax.monitoring.register_event_listener(lambda event, **about: parts.cache.update([event.rpartition("/")[2]]))
    for part, owner, names in (
        ("kernel", native.Library, ["path"]),
        ("data", datasets, ["load"]),
        ("data", Job, ["arguments"]),
        ("training", trainer.Trainer, ["begin", "train", "with_best_again"]),
        ("evaluation", trainer.Trainer, ["evaluate"]),
        ("files", storage.Storage, ["save", "wait", "close"]),
        ("files", writing, ["write_tables", "write_params", "finish"]),
        ("files", opening, ["is_finished"]),
        ("files", reading, ["load"]),
    ):
        for name in names:
            parts.within(part, owner, name)
    shown = running.run

    def run(*args: Any) -> None:
        shown(*args)
        from experiments.pages import figures

        parts.within("drawing", figures, "add")

    running.run = run
    parallel.split_cpu()
    sys.argv = ["search", *flags]
    try:
        entry.run(search.main, search.__doc__ or "")
    finally:
        seconds = time.time() - float(started)
        parts.seconds["rest"] = seconds - sum(parts.seconds.values())
        cache = {name: parts.cache[name] for name in ("cache_hits", "cache_misses")}
        found = {"seconds": seconds, "parts": parts.seconds, "programs": parts.programs, **cache}
        Path(output).write_text(json.dumps({**found, "platform": jax.default_backend()}))


def main(argv: list[str]) -> None:
    """Run the searches, print the parts, and write the JSON file."""
    from absl import flags

    from experiments.app import command_line
    from experiments.app.machine import hardware
    from experiments.configs import loading

    values = flags.FlagValues()
    flags.DEFINE_integer("repetitions", 1, "searches of each kind", lower_bound=1, flag_values=values)
    config, overrides, rest = command_line.split_config_flags(argv)
    command_line.parse_flags(rest, values)
    label = loading.load(config, {}).label
    given = [f"--config={config}", *(f"--config.{key}={value}" for key, value in overrides.items())]
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in SEARCHES}
    for _ in range(values.repetitions):
        with tempfile.TemporaryDirectory() as folder:
            for kind, changes in SEARCHES.items():
                output = Path(folder, kind + ".json")
                command = [sys.executable, "-m", "benchmarks.waiting", f"--started={time.time()}", str(output)]
                environment = {**os.environ, "XDG_CACHE_HOME": folder, "PYTHONPYCACHEPREFIX": folder, **changes}
                for name in "JAX_COMPILATION_CACHE_DIR", "PYTHONDONTWRITEBYTECODE":
                    environment.pop(name, None)
                subprocess.run(
                    [*command, *given, f"--workdir={folder}/{kind}"],
                    check=True,
                    stdout=subprocess.DEVNULL,
                    env=environment,
                )
                found[kind].append(json.loads(output.read_text()))
    medians = {kind: _median(rows) for kind, rows in found.items()}
    for kind, row in medians.items():
        waiting = row["seconds"] - sum(row["parts"].get(part, 0.0) for part in WORK)
        print(f"{kind}: {row['seconds']:.1f} s, waiting {waiting:.1f} s; {row['cache_hits']:g} cache hits")
        parts = sorted(row["parts"].items(), key=lambda item: -item[1])
        print("  " + ", ".join(f"{part} {seconds:.2f}" for part, seconds in parts))
    settings = {"config": config, "overrides": overrides, "repetitions": values.repetitions}
    path = Path(__file__).parent / "results" / f"waiting_{found['first'][0]['platform']}_{label}.json"
    path.write_text(json.dumps({**settings, "searches": medians, "hardware": hardware()}, indent=2) + "\n")


def _median(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians of all numbers, including those in nested dictionaries."""

    def of(*values: Any) -> Any:
        if isinstance(values[0], dict):
            return {name: of(*(value.get(name, 0.0) for value in values)) for name in values[0]}
        return round(statistics.median(values), 3)

    return of(*({name: value for name, value in row.items() if name != "platform"} for row in rows))


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].startswith("--started="):
        search(sys.argv[1].partition("=")[2], *sys.argv[2:])
    else:
        from experiments.app import entry

        entry.run(main, __doc__)

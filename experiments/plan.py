"""What a search or a training needs of memory and time, before it runs: on this machine, or on devices to be paid for.

    python -m experiments.plan --config=digits_depth50
    python -m experiments.plan --config=mnist_depth100 --config.num_runs=10000 --devices=256 --device=h100

--config=NAME          a config of experiments/configs, a search's or a convolutional network's, or a path to one
--config.KEY=VALUE     changes one of its keys
--device=NAME          here (the default), a100, h100, h200, l4, t4, tpu_v5e, tpu_v5p or tpu_v6e
--devices=N            how many; by default as many as JAX sees here, and 1 elsewhere

Memory is what XLA says of the compiled epoch. For a TPU its own compiler is asked, where libtpu is installed
(`pip install -e '.[tpu]'`, on any Linux machine); for other devices that are not here, the CPU's stands in. Time is
from the rates in benchmarks/results, and given only for devices that were measured.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
from absl import flags
from ml_collections import ConfigDict
from rich.table import Table

from experiments.app import command_line, entry, settings
from experiments.app.errors import UserError
from experiments.app.output import Output
from experiments.app.words import duration
from experiments.configs import loading
from experiments.jobs.job import Job
from experiments.jobs.making import job_of
from experiments.jobs.rates import Rate, measured_rate
from experiments.jobs.running import as_user_errors
from highway_jax import parallel, population
from highway_jax.population import DEVICES, Device, Plan
from highway_jax.population.planning import size, this_device


def main(argv: list[str]) -> None:
    values = flags.FlagValues()
    flags.DEFINE_string("device", "here", "kind of device", flag_values=values)
    flags.DEFINE_integer("devices", None, "how many", lower_bound=1, flag_values=values)
    name, overrides, rest = command_line.split_config_flags(argv)
    command_line.parse_flags(rest, values)
    here = values.device == "here"
    if not here and values.device not in DEVICES:
        raise UserError(f"--device is {values.device!r}; it must be one of here, {', '.join(DEVICES)}")
    label, config, function = loading.load(name, overrides)
    settings.pin()
    if not here and "search" in config:
        config.implementation = "xla"  # the fused layers are a CPU's
    job = job_of(config, function, earlier=None if here else {}, outlined=True)
    device = this_device() if here else DEVICES[values.device]
    given = values.devices or (min(jax.device_count(), config.num_runs) if here else 1)
    plans = plans_of(job, device, given)
    contender = "ours_xla" if device.kind == "cpu" and "xla" in job.implementations.values() else "ours"
    runs = min(plan.runs_per_batch for plan in plans.values())
    rate = measured_rate(device.kind, config.depth, contender=contender, runs=runs) if "search" in config else None
    console = Output()
    console.print(
        f"{label}: {config.num_runs:,} run{'s' * (config.num_runs > 1)} of {' and of '.join(job.networks)}, "
        f"{config.epochs:,} epoch{'s' * (config.epochs > 1)} of "
        f"{len(job.train['y']) // config.batch_size:,} steps, on {given:,} x {device.kind}"
    )
    console.print(table(plans, config, rate))
    for note in notes(plans, config, given, rate):
        console.print(note)


def plans_of(job: Job, device: Device, devices: int) -> dict[str, Plan]:
    """The plan of each kind of network; of the job's data, shapes and dtypes are enough."""
    config = job.config
    how = {
        "device": device,
        "devices": devices,
        "runs_in_memory": config.runs_in_memory,
        "runs_per_batch": config.runs_per_batch,
    }
    with jax.default_matmul_precision(config.matmul_precision), as_user_errors(config):
        return {network: population.plan(**job.arguments(network), **how) for network in job.networks}


def table(plans: Mapping[str, Plan], config: ConfigDict, rate: Rate | None) -> Table:
    """The plans, a column for each kind of network."""
    rows: dict[str, Callable[[Plan], str]] = {
        "parameters of a run": lambda plan: f"{plan.parameters:,}",
        "runs on a device": lambda plan: f"{plan.runs:,}",
        "  in memory at once": lambda plan: f"{plan.resident:,}",
        "  in lockstep": lambda plan: f"{plan.runs_per_batch:,}",
        "memory of a device": lambda plan: f"{size(plan.memory)} of {size(plan.device.memory)}",
        "  parameters, optimizer": lambda plan: size(plan.population),
        "  images, labels": lambda plan: size(plan.data),
        "  the compiled program": lambda plan: size(plan.program),
        "a checkpoint": lambda plan: size(plan.checkpoint),
        "FLOP of a device": lambda plan: f"{plan.flops:.2e}",
    }
    if rate:
        rows["time of an epoch"] = lambda plan: duration(plan.seconds(rate.typical) / config.epochs)
        rows["time of all epochs"] = lambda plan: _span([plan], rate)
    else:
        rows["time"] = lambda plan: "not measured"
    grid = Table()
    grid.add_column("")
    for network in plans:
        grid.add_column(network, justify="right")
    for label, cell in rows.items():
        grid.add_row(label, *map(cell, plans.values()))
    return grid


def notes(plans: Mapping[str, Plan], config: ConfigDict, given: int, rate: Rate | None) -> Iterator[str]:
    """What the figures stand on, and what is wrong with the plan."""
    one = next(iter(plans.values()))
    device = one.device
    if rate:
        yield f"in all {_span(plans.values(), rate)}, and some seconds of compilation for each kind of network"
        yield f"time: from {', '.join(rate.files)}; in brackets, at their fastest and slowest repetition"
        fewest = min(plan.runs_per_batch for plan in plans.values())
        if device.kind != "cpu" and 2 * fewest < rate.runs:
            yield f"warning: the time was measured with {rate.runs} runs in lockstep; with {fewest} it takes longer"
    else:
        known = "fully connected networks" if "search" not in config else "other devices"
        yield f"time: benchmarks/results has measured {known} only"
    if one.compiled_for != device.kind:
        yield f"memory: as compiled for {one.compiled_for}, which stands in for {device.kind}"
    if device.kind == "cpu":
        yield "memory: a device is a core, with its share of this machine's; Python and JAX come on top"
    largest = max(plans.values(), key=lambda plan: plan.memory)
    if not largest.fits:
        yield f"warning: {size(largest.memory)} do not fit into a device's {size(device.memory)}"
    if parts := {name: -(-plan.runs // plan.resident) for name, plan in plans.items() if plan.resident < plan.runs}:
        counts = " and ".join(f"{name} in {count}" for name, count in parts.items())
        yield f"memory does not hold all runs at once; they are trained one part after another, {counts}"
    if given > config.num_runs:
        yield f"warning: {given:,} devices for {config.num_runs:,} runs; the plan is for one run on as many devices"
    padding = one.runs * one.devices / config.num_runs - 1
    if padding > 0.05:
        yield f"warning: {config.num_runs:,} runs do not divide by {given:,} devices; {padding:.0%} more are trained"


def _span(plans: Iterable[Plan], rate: Rate) -> str:
    plans = list(plans)
    low, typical, high = (duration(sum(plan.seconds(r) for plan in plans)) for r in (rate.high, rate.typical, rate.low))
    return f"{typical} ({low} to {high})"


if __name__ == "__main__":
    parallel.split_cpu()
    entry.run(main, __doc__)

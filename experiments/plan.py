"""Estimate the memory and time of a search or a training before it runs, on this machine or on devices that you rent.

    python -m experiments.plan --config=digits_depth50
    python -m experiments.plan --config=mnist_depth100 --config.num_runs=10000 --devices=256 --device=h100
    python -m experiments.plan --config=mnist_depth100 --config.num_runs=10000 --topology=v5e:16x16

--config=NAME          a config of experiments/configs, for a search or a convolutional network, or a path to one
--config.KEY=VALUE     changes one of its keys
--device=NAME          here (the default), a100, h100, h200, l4, t4, tpu_v5e, tpu_v5p or tpu_v6e
--devices=N            number of devices; by default all that JAX sees on this machine, and 1 elsewhere
--topology=NAME        a whole TPU slice instead of both, such as v5e:16x16, v5p:4x4x8 or v6e:8x8

Memory is what XLA reports for the compiled epoch and evaluation. Programs for a TPU are compiled by its own compiler if
libtpu is installed (`pip install 'highway-jax[tpu]'`, on any Linux machine). For other devices that this machine lacks,
the CPU's compiler stands in. For a slice, the programs are compiled for all of its chips together, split as
--config.mesh="(runs, data)" says or as a search would choose; what the chips send each other is read from these
programs. For a single chip, such as --device=tpu_v5e, the first chip of the smallest slice stands in. Time comes from
the rates in benchmarks/results, and is given only for devices that were measured.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

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
from experiments.jobs.rates import RESULTS, Rate, measured_rate
from experiments.jobs.running import as_user_errors
from highway_jax import parallel, population
from highway_jax.population import DEVICES, Plan
from highway_jax.population.devices import compiler_of, slice_of
from highway_jax.population.planning import in_words, size


def main(argv: list[str]) -> None:
    values = flags.FlagValues()
    flags.DEFINE_string("device", None, "kind of device", flag_values=values)
    flags.DEFINE_integer("devices", None, "number of devices", lower_bound=1, flag_values=values)
    flags.DEFINE_string("topology", None, "TPU slice", flag_values=values)
    name, overrides, rest = command_line.split_config_flags(argv)
    command_line.parse_flags(rest, values)
    here = values.device in (None, "here") and values.topology is None
    label, config, function = loading.load(name, overrides)
    where = _where(values, config)
    settings.pin()
    if not here:
        config.implementation = "xla"  # whether another machine can build our kernels is not known here
    job = job_of(config, function, earlier=None if here else {}, outlined=True)
    plans = plans_of(job, **where)
    one = next(iter(plans.values()))
    device, given, shares = one.device, values.devices or one.devices, one.devices_to_a_batch
    contender = "ours_xla" if device.kind == "cpu" and "xla" in job.implementations.values() else "ours"
    runs = min(plan.runs_per_batch for plan in plans.values())
    rate = measured_rate(device.kind, config.depth, contender=contender, runs=runs) if "search" in config else None
    console = Output()
    console.print(
        f"{label}: {config.num_runs:,} run{'s' * (config.num_runs > 1)} of {' and of '.join(job.networks)}, "
        f"{config.epochs:,} epoch{'s' * (config.epochs > 1)} of "
        f"{len(job.train['y']) // config.batch_size:,} steps, on {given:,} x {device.kind}"
        + f", {shares} to a batch"
        * (shares > 1)
    )
    console.print(table(plans, config, rate))
    for note in notes(plans, config, given, rate):
        console.print(note)


def _where(values: flags.FlagValues, config: ConfigDict) -> dict[str, Any]:
    """The arguments of `population.plan` that select the devices."""
    here = values.device in (None, "here")
    if not here and values.device not in DEVICES:
        raise UserError(f"--device is {values.device!r}; it must be one of here, {', '.join(DEVICES)}")
    if values.topology is None and config.mesh is None:
        if here:
            return {"devices": values.devices}
        compiler_of(DEVICES[values.device])  # libtpu prints less to stderr if it is loaded before JAX looks for a TPU
        return {"device": DEVICES[values.device], "devices": values.devices}
    given = {name: values[name].value for name in ("device", "devices") if values[name].value is not None}
    for name, value in given.items():
        if values.topology is not None:
            raise UserError(f"--{name} is {value!r}, but --topology already sets the kind and number of devices")
        if not here or name == "devices":
            raise UserError(
                f"config.mesh is {config.mesh}, but --device and --devices plan for one device that stands for all; "
                "give --topology, or leave them out to plan for this machine's devices"
            )
    try:
        there = jax.devices() if values.topology is None else slice_of(values.topology)[1]
    except ValueError as error:
        raise UserError(f"--{error}") from error
    try:
        if config.mesh is not None:
            parallel.mesh_of(config.mesh, there)
    except ValueError as error:
        raise UserError(f"config.{error}") from error
    return {"topology": values.topology, "mesh": config.mesh}


def plans_of(job: Job, **where: Any) -> dict[str, Plan]:
    """The plan of each kind of network; the job's data may be shapes and dtypes only.

    Args:
      where: the arguments of `population.plan` that select the devices.
    """
    config = job.config
    how = {**where, "runs_in_memory": config.runs_in_memory, "runs_per_batch": config.runs_per_batch}
    with jax.default_matmul_precision(config.matmul_precision), as_user_errors(config):
        return {network: population.plan(**job.arguments(network), **how) for network in job.networks}


def table(plans: Mapping[str, Plan], config: ConfigDict, rate: Rate | None) -> Table:
    """The plans as a table with a column for each kind of network."""
    rows: dict[str, Callable[[Plan], str]] = {
        "parameters of a run": lambda plan: f"{plan.parameters:,}",
        "runs on a device": lambda plan: f"{plan.runs:,}",
        "  in memory at once": lambda plan: f"{plan.resident:,}",
        "  in lockstep": lambda plan: f"{plan.runs_per_batch:,}",
        "fits": lambda plan: "yes" if plan.fits else "no",
        "memory of a device": lambda plan: f"{size(plan.memory)} of {size(plan.device.memory)}",
        "  parameters, optimizer": lambda plan: size(plan.population),
        "  images, labels": lambda plan: size(plan.data),
        "  their padding to tiles": lambda plan: size(plan.padding),
        "  the compiled program": lambda plan: size(plan.program),
        "a checkpoint": lambda plan: size(plan.checkpoint),
        "FLOP of a device": lambda plan: f"{plan.flops:.2e}",
    }
    if not any(plan.padding for plan in plans.values()):
        del rows["  their padding to tiles"]
    if all(plan.devices > 1 and plan.collectives is not None for plan in plans.values()):
        rows["a device sends in a step"] = lambda plan: in_words(plan.collectives.step)  # type: ignore[union-attr]
        rows["  in an epoch"] = lambda plan: in_words(plan.collectives.epoch)  # type: ignore[union-attr]
    rows["compilation here"] = lambda plan: duration(plan.compile_seconds)
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
    """Where the figures come from, and warnings about the plan."""
    one = next(iter(plans.values()))
    device = one.device
    if rate:
        yield f"in all {_span(plans.values(), rate)}, plus a few seconds of compilation for each kind of network"
        yield f"time: from {', '.join(rate.files)}; in brackets, the fastest and the slowest repetition measured"
        fewest = min(plan.runs_per_batch for plan in plans.values())
        if device.kind != "cpu" and 2 * fewest < rate.runs:
            yield f"warning: the time was measured with {rate.runs} runs in lockstep; with {fewest} it takes longer"
    elif not RESULTS.exists():
        yield "time: the measured rates are in benchmarks/results of a clone; this installed package has none"
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
        yield f"memory does not hold all runs at once; they are trained in parts, {counts}"
    if given > one.devices:
        yield f"warning: {given:,} devices for {config.num_runs:,} runs; the plan is for as many devices as runs"
    shards = one.devices // one.devices_to_a_batch
    padding = one.runs * shards / config.num_runs - 1
    if padding > 0.05:
        among = f"{shards:,} groups of" if one.devices_to_a_batch > 1 else f"{given:,}"
        yield f"warning: {config.num_runs:,} runs do not divide by {among} devices; {padding:.0%} more are trained"


def _span(plans: Iterable[Plan], rate: Rate) -> str:
    plans = list(plans)
    low, typical, high = (duration(sum(plan.seconds(r) for plan in plans)) for r in (rate.high, rate.typical, rate.low))
    return f"{typical} ({low} to {high})"


if __name__ == "__main__":
    parallel.split_cpu()
    entry.run(main, __doc__)

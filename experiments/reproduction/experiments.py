"""The paper's experiments: what trains each, and how much of it."""

from dataclasses import dataclass
from pathlib import Path

from experiments.app.errors import UserError

DEPTHS = (10, 20, 50, 100)  # of Figure 1
# On a CPU, the worse half of a search's runs stops after every 20 of the 400 epochs until ten are left. Runs that start
# late, with a slowly decaying learning rate, have 20 epochs to catch up; stopping after five favoured fast decays.
SMALL_SEARCH = ("search.halving.every=20", "search.halving.at_least=10")
SMALL_CONVOLUTIONAL = {
    "mnist_conv16": ("num_runs=1",),
    "mnist_conv32": ("num_runs=1", "epochs=60", "boundaries=(20, 40)"),
    "cifar10_highway_a": ("num_runs=1", "epochs=60", "boundaries=(30, 45, 52.5)"),
}

# The network that the paper looks into is a tanh network whose gates began at -2; ours need not be.
TANH = ("networks=highway", "search.activation=tanh", "search.transform_bias=(-2.0, -2.0)")
SMALL_TANH = ("num_runs=8", "search.learning_rate=(0.03, 0.3)", "search.momentum=(0.8, 0.9)")
# Controls: all of a few runs are trained, with learning rates that suit the network and decay slowly.
SLOW_RATES = {
    "highway": dict.fromkeys(DEPTHS, "(0.03, 0.3)"),
    "plain": {10: "(0.005, 0.05)", 20: "(0.005, 0.05)", 50: "(1e-4, 1e-2)", 100: "(1e-4, 1e-2)"},
}
SMALL_SLOW = ("num_runs=8", "epochs=200")


@dataclass(frozen=True)
class Experiment:
    """A directory of results/ and what fills it.

    Attributes:
      name: the directory's.
      what: the part of the paper that it belongs to.
      config: of `experiments.search` or `experiments.train`.
      paper: changes to the config for what the paper did.
      small: further changes for what two CPU cores can do in hours; None: nothing that is worth it.
      title: what Figures 2 to 4 call it, where they are drawn.
    """

    name: str
    what: str
    config: str
    paper: tuple[str, ...] = ()
    small: tuple[str, ...] | None = None
    title: str = ""


def _slow(network: str, rates: str) -> tuple[str, ...]:
    return f"networks={network}", "search.decay=(0.98, 0.995)", f"search.learning_rate={rates}"


TABLES = {
    1: ("mnist_conv16", "mnist_conv32"),
    2: ("cifar10_highway_a", "cifar10_highway_b", "cifar10_highway_c"),
    3: ("cifar10_gap", "cifar100_gap"),
}
EXPERIMENTS = (
    *(Experiment(f"figure1_depth{d}", "figure1", f"mnist_depth{d}", small=SMALL_SEARCH) for d in DEPTHS),
    *(
        Experiment(name, f"table{table}", name, ("num_runs=5",), SMALL_CONVOLUTIONAL.get(name))
        for table, names in TABLES.items()
        for name in names
    ),
    Experiment("figure1_depth50", "gates", "mnist_depth50", small=SMALL_SEARCH, title="MNIST"),
    Experiment("cifar100_depth50", "gates", "cifar100_depth50", ("networks=highway",), title="CIFAR-100"),
    Experiment("gates_tanh", "gates_tanh", "mnist_depth50", TANH, SMALL_TANH, title="MNIST, tanh, gates from -2"),
    Experiment(
        "very_deep",
        "very_deep",
        "mnist_depth1000",
        ("depth=1100", "networks=highway"),
        ("num_runs=4", "epochs=5", "search.learning_rate=(0.01, 0.3)"),
    ),
    *(
        Experiment(f"slow_decay_{network}_depth{d}", "slow_decay", f"mnist_depth{d}", _slow(network, rates), SMALL_SLOW)
        for network, by_depth in SLOW_RATES.items()
        for d, rates in by_depth.items()
    ),
)
PARTS = tuple(dict.fromkeys(experiment.what for experiment in EXPERIMENTS))


def choose(parts: list[str], depths: list[str]) -> list[Experiment]:
    """The experiments that are meant, in the order in which they are named.

    Raises:
      UserError: for a name or a depth that there is none of.
    """
    figure1 = {e.name.removeprefix("figure1_depth"): e for e in EXPERIMENTS if e.what == "figure1"}
    for depth in depths or [""]:
        if depth not in figure1:
            raise UserError(f"--depths has {depth!r}; it must be of {', '.join(figure1)}")
    chosen: list[Experiment] = []
    for part in parts:
        if part not in PARTS:
            raise UserError(f"--what has {part!r}; it must be of {', '.join(PARTS)}")
        if part == "figure1":
            chosen += [figure1[depth] for depth in depths]
        else:
            chosen += [experiment for experiment in EXPERIMENTS if experiment.what == part]
    return chosen


def commands(experiment: Experiment, scale: str, directory: Path) -> list[list[str]]:
    """What to run for an experiment, one command after the other: the program and its arguments."""
    changes = experiment.paper + (experiment.small or ()) * (scale == "small")
    program = "train" if experiment.what.startswith("table") else "search"
    train = [program, f"--config={experiment.config}", *(f"--config.{change}" for change in changes)]
    analyze = ["analyze", f"--title={experiment.title}"]
    return [[*command, f"--workdir={directory}"] for command in [train, analyze][: 1 + bool(experiment.title)]]

"""The paper's experiments: what trains each, and how much of it."""

from dataclasses import dataclass
from pathlib import Path

from experiments.app.errors import UserError

# Of a depth's search on a CPU: the worse half of the runs stops every five epochs, until ten are left.
HALVED = ("search.halving.every=5", "search.halving.at_least=10")
SMALL_SEARCH = {
    10: ("epochs=100", *HALVED),
    20: ("epochs=100", *HALVED),
    50: ("epochs=60", *HALVED),
    100: ("epochs=60", *HALVED),
}
SMALL_MNIST = ("epochs=12", "learning_rate=0.05", "boundaries=(8, 11)")

# The network that the paper looks into is a tanh network whose gates began at -2; ours need not be.
TANH = ("networks=highway", "search.activation=tanh", "search.transform_bias=(-2.0, -2.0)")
SMALL_TANH = ("num_runs=8", "epochs=40", "search.learning_rate=(0.03, 0.3)", "search.momentum=(0.8, 0.9)")
# Networks whose learning rates stay high for longer: do they get lower in the end? Each kind at rates that suit it.
SLOW = {
    "plain": ("networks=plain", "search.decay=(0.98, 0.995)", "search.learning_rate=(0.005, 0.05)"),
    "highway": ("networks=highway", "search.decay=(0.98, 0.995)", "search.learning_rate=(0.03, 0.3)"),
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
      small: further changes for what a CPU can do in an hour or so; None: nothing that is worth it.
      title: what Figures 2 to 4 call it, where they are drawn.
    """

    name: str
    what: str
    config: str
    paper: tuple[str, ...] = ()
    small: tuple[str, ...] | None = None
    title: str = ""


EXPERIMENTS = (
    *(Experiment(f"figure1_depth{d}", "figure1", f"mnist_depth{d}", small=small) for d, small in SMALL_SEARCH.items()),
    *(Experiment(f"mnist_conv{w}", "table1", f"mnist_conv{w}", ("num_runs=5",), SMALL_MNIST) for w in (16, 32)),
    *(Experiment(f"cifar10_highway_{x}", "table2", f"cifar10_highway_{x}", ("num_runs=5",)) for x in "bac"),
    *(Experiment(f"{name}_gap", "table3", f"{name}_gap", ("num_runs=5",)) for name in ("cifar10", "cifar100")),
    Experiment("figure1_depth50", "gates", "mnist_depth50", small=SMALL_SEARCH[50], title="MNIST"),
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
        Experiment(f"slow_decay_{network}_depth{d}", "slow_decay", f"mnist_depth{d}", changes, SMALL_SLOW)
        for d in (10, 20)
        for network, changes in SLOW.items()
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

"""docs/reproduction.md, its Figure 1, and the README's first screen: what was measured says, and nothing else."""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from experiments.pages import figures, sentences, tables
from experiments.pages.templates import template
from experiments.reproduction import accuracy, criteria, inside, optimization
from experiments.reproduction.criteria import Claim
from experiments.reproduction.experiments import DEPTHS
from experiments.reproduction.optimization import NETWORKS
from experiments.workdir import reading
from experiments.workdir.contents import Workdir
from experiments.workdir.files import read_json
from highway_jax import plotting
from highway_jax.files import write_whole

BETWEEN = re.compile(r"(?<=<!-- claims -->\n).*(?=<!-- /claims -->)", re.DOTALL)  # of the README


def write(root: Path) -> list[Path]:
    """Write the page, its figure and the README's first screen; returns what was written."""
    found = load(root / "results")
    files = {path: text.encode() for path, text in texts(root, found).items()}
    if searches := by_depth(found, "figure1"):
        files[root / "results" / "figure1.png"] = figures.png(figure1(searches))
    for path, content in files.items():
        write_whole(path, content)
    return list(files)


def texts(root: Path, found: Mapping[str, Workdir]) -> dict[Path, str]:
    """What the page and the README are to say."""
    readme = root / "README.md"
    judged = judge(root / "results", found)
    return {
        root / "docs" / "reproduction.md": page(root / "results", found, judged),
        readme: BETWEEN.sub(lambda _: f"\n{first_screen(root, found, judged)}\n", readme.read_text()),
    }


def load(directory: Path) -> dict[str, Workdir]:
    """All results, by the names of their directories."""
    return {path.parent.name: reading.load(path.parent) for path in sorted(directory.glob("*/config.json"))}


def by_depth(found: Mapping[str, Workdir], name: str) -> dict[int, Workdir]:
    """Searches that differ in depth, those that have not come to their end included."""
    return {depth: found[f"{name}_depth{depth}"] for depth in DEPTHS if f"{name}_depth{depth}" in found}


def _finished(searches: Mapping[int, Workdir]) -> dict[int, Workdir]:
    return {depth: search for depth, search in searches.items() if search.finished}


def judge(directory: Path, found: Mapping[str, Workdir]) -> list[Claim]:
    """Every claim of the paper, by section."""
    judged = [
        optimization.very_deep(found.get("very_deep")),
        *optimization.figure1(
            _finished(by_depth(found, "figure1")),
            {network: _finished(by_depth(found, f"slow_decay_{network}")) for network in NETWORKS},
        ),
        *accuracy.accuracies(list(found.values())),
        *itertools.starmap(_with_other, _gates(directory)),
        *inside.gates_of_cifar100(analysis(directory / "cifar100_depth50")),
    ]
    return sorted(judged, key=lambda claim: claim.section)


def _gates(directory: Path) -> list[tuple[Claim, Claim]]:
    """Section 4's claims of the best network, and beside each that of one more like the paper's."""
    best, tanh = (inside.gates(analysis(directory / name)) for name in ("figure1_depth50", "gates_tanh"))
    return list(zip(best, tanh, strict=True))


def _with_other(best: Claim, tanh: Claim) -> Claim:
    """A claim of the best network, and what the one more like the paper's says where it says otherwise."""
    if tanh.verdict in (best.verdict, criteria.NOT_RUN):
        return best
    otherwise = f"**{tanh.verdict}** for a tanh network from -2, like the paper's: {tanh.evidence}"
    return dataclasses.replace(best, evidence=f"{best.evidence} ({otherwise})")


def analysis(directory: Path) -> dict[str, Any] | None:
    """What `experiments.analyze` found, if it was run."""
    path = directory / "analysis.json"
    return read_json(path) if path.exists() else None


def page(directory: Path, found: Mapping[str, Workdir], judged: list[Claim]) -> str:
    """The text of docs/reproduction.md, from `reproduction.md.jinja`."""
    return _template("reproduction.md.jinja").render(
        criteria=criteria,
        optimization=optimization,
        judged=judged,
        found=found,
        depths=DEPTHS,
        searches=by_depth(found, "figure1"),
        controls={network: by_depth(found, f"slow_decay_{network}") for network in NETWORKS},
        tables=tables.tables(list(found.values())),
        gates=_gates(directory),
        analysis=analysis(directory / "figure1_depth50"),
        tanh=found.get("gates_tanh"),
        tanh_analysis=analysis(directory / "gates_tanh"),
        data_of=sentences.data_of,
        state=sentences.state,
    )


def first_screen(root: Path, found: Mapping[str, Workdir], judged: list[Claim]) -> str:
    """The README's: Figure 1, what stands out in a line each, and how many of the paper's claims hold."""
    screen = _template("readme.md.jinja").render(
        criteria=criteria,
        optimization=optimization,
        judged=judged,
        searches=_finished(by_depth(found, "figure1")),
        timings=_timings(root / "benchmarks" / "results"),
        very_deep=found.get("very_deep"),
        mnist=accuracy.whole(list(found.values()), accuracy.TABLE1, accuracy.WIDTH32),
        analysis=analysis(root / "results" / "figure1_depth50"),
    )
    return screen.removesuffix("\n")


def _timings(measured: Path) -> list[dict[str, Any]]:
    """What populations of depth 100 took on every device where ours and a loop over PyTorch modules were measured."""
    timings = []
    for path in sorted(measured.glob("population_*_depth100.json")):
        timing = read_json(path)
        if all("ms" in timing["contenders"].get(name, {}) for name in ("ours", "torch_loop")):
            timings.append(timing)
    return timings


def _template(name: str) -> jinja2.Template:
    return template(Path(__file__).with_name(name), device=_device, seconds=_seconds, groupby_device=_by_device)


def _by_device(searches: Iterable[Workdir]) -> list[tuple[str, list[Workdir]]]:
    """Searches by what they were done on."""
    groups: dict[str, list[Workdir]] = {}
    for search in searches:
        groups.setdefault(_device(search), []).append(search)
    return list(groups.items())


def _device(search: Workdir) -> str:
    """What a search's provenance says that it was done on."""
    about = search.provenance
    if about.get("platform") == "cpu":
        return f"{about.get('cpu_cores', '?')} CPU cores"
    return f"{about.get('devices', '?')} x {about.get('device', '?')}"


def _seconds(search: Workdir) -> float:
    return sum(search.provenance.get("seconds", {}).values())


def figure1(searches: Mapping[int, Workdir]) -> Figure:
    """Figure 1 of all depths."""
    return plotting.comparison(
        [search.results for search in searches.values()],
        [f"depth {depth}" for depth in searches],
        "Figure 1 on MNIST",
        depths=list(searches),
        best_of=0.1,
    )

"""docs/reproduction.md, its Figure 1, and the README's first screen: what was measured says, and nothing else."""

import dataclasses
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.app.words import duration
from experiments.pages import figures, sentences, tables
from experiments.pages.words import listed, markdown_table, template
from experiments.reproduction import claims
from experiments.workdir import reading
from experiments.workdir.contents import Workdir
from experiments.workdir.files import read_json
from highway_jax import plotting
from highway_jax.analysis.summary import TOLERATED
from highway_jax.files import write_whole
from highway_jax.plotting import number

DEPTHS = (10, 20, 50, 100)
FIGURE1 = "depth|network|best loss|mean of best 10|of the best tenth|median|to 0.1|to 0.01|to 0.001|diverged|time"
EXACT = (  # a property that tests hold, and no number of a run
    "**Exact resume and replay:** a search that was stopped or killed resumes, and ends with the results of one that "
    "never stopped, to the last bit; on a CPU, a run that is trained again alone repeats exactly "
    "([tests](tests/experiments/test_resume.py))."
)
BETWEEN = re.compile(r"(?<=<!-- claims -->\n).*(?=<!-- /claims -->)", re.DOTALL)  # of the README
DATA = {  # MD5 of the training set, as `data.md5` has it
    "a54d59b5fad9aa93751c3618b95cad3d": "MNIST (TFDS 3.0.1, lossless)",
    "817c1b100417923c4895341820bc578c": "CIFAR-10 (TFDS 3.0.2, a copy re-encoded as JPEG: slightly off)",
}


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


def judge(directory: Path, found: Mapping[str, Workdir]) -> list[claims.Claim]:
    """Every claim of the paper."""
    return [
        claims.very_deep(found.get("very_deep")),
        *claims.figure1(_finished(by_depth(found, "figure1")), _finished(by_depth(found, "slow_decay_plain"))),
        *claims.accuracies(list(found.values())),
        *_gates(directory),
        *claims.gates_of_cifar100(analysis(directory / "cifar100_depth50")),
    ]


def _gates(directory: Path) -> list[claims.Claim]:
    """Section 4's claims of the best network, and of one more like the paper's where it says otherwise."""
    judged = []
    ours, alike = (claims.gates(analysis(directory / name)) for name in ("figure1_depth50", "gates_tanh"))
    for best, tanh in zip(ours, alike, strict=True):
        if tanh.verdict not in (best.verdict, claims.NOT_RUN):
            otherwise = f"**{tanh.verdict}** for a tanh network from -2, like the paper's: {tanh.evidence}"
            best = dataclasses.replace(best, evidence=f"{best.evidence} ({otherwise})")
        judged.append(best)
    return judged


def analysis(directory: Path) -> dict[str, Any] | None:
    """What `experiments.analyze` found, if it was run."""
    path = directory / "analysis.json"
    return read_json(path) if path.exists() else None


def page(directory: Path, found: Mapping[str, Workdir], judged: list[claims.Claim]) -> str:
    """The text of docs/reproduction.md, from `reproduction.md.jinja`."""
    return template(Path(__file__).with_name("reproduction.md.jinja")).render(
        claims=claims,
        claims_table=claims_table(judged),
        searches=by_depth(found, "figure1"),
        figure1_table=figure1_table(by_depth(found, "figure1")),
        tables=tables.tables(list(found.values())),
        analysis=analysis(directory / "figure1_depth50"),
        slower=slower_table(found),
        tanh=tanh_table(directory),
        tanh_search=found.get("gates_tanh"),
        number=number,
        origins=origins(found),
        state=sentences.state,
    )


def claims_table(judged: list[claims.Claim]) -> str:
    """The claims as a Markdown table."""
    return markdown_table(
        ("section", "the paper", "here", "measured"),
        [(claim.section, claim.words, f"**{claim.verdict}**", claim.evidence) for claim in judged],
    )


def first_screen(root: Path, found: Mapping[str, Workdir], judged: list[claims.Claim]) -> str:
    """The README's: Figure 1, what stands out in a line each, and how many of the paper's claims hold."""
    verdicts = [claim.verdict for claim in judged]
    holds, fails, open_ = (verdicts.count(verdict) for verdict in (claims.HOLDS, claims.FAILS, claims.NOT_RUN))
    reasons = (
        f'One that does not: "{claim.words}" ({claim.evidence.partition(";")[0]}). '
        for claim in judged
        if claim.verdict == claims.FAILS
    )
    tally = (
        f"Of the paper's {len(judged)} claims, {holds} hold here, {fails} do not, and {open_} have not been run. "
        f"{next(reasons, '')}[docs/reproduction.md](docs/reproduction.md) lists them all with their numbers."
    )
    lines = [_depth(found), _speed(root / "benchmarks" / "results"), _very_deep(found), EXACT, _inside(found)]
    points = "\n".join(f"- {line}" for line in lines if line)
    return "\n\n".join(part for part in (_figure(_finished(by_depth(found, "figure1"))), points, tally) if part)


def _figure(searches: Mapping[int, Workdir]) -> str:
    """Figure 1 and its caption."""
    if not searches:
        return ""
    configs = [search.config for search in searches.values()]
    runs, epochs = (_range({config[key] for config in configs}) for key in ("num_runs", "epochs"))
    halving = configs[0].search.halving
    early = ""
    if halving.every:
        early = f" Every {halving.every} epochs the worse half of the runs stopped, until {halving.at_least} were left."
    seconds = sum(sum(search.provenance.get("seconds", {}).values()) for search in searches.values())
    device = _device(next(iter(searches.values())).provenance)
    return (
        "![Best training curves at every depth, and the mean of the best ten against depth](results/figure1.png)\n\n"
        f"*Figure 1 of the paper on MNIST: the best of {runs} runs of each network after {epochs} epochs (the paper: "
        f"{claims.EPOCHS}).{early} All of it took {duration(seconds)} on {device}.*"
    )


def _depth(found: Mapping[str, Workdir]) -> str:
    """How much lower the loss of highway networks is at 100 layers; empty if it is not."""
    search = found.get("figure1_depth100")
    if search is None or not search.finished or not {"highway", "plain"} <= search.results.keys():
        return ""
    highway, plain = (float(search.results[network].ranking.best.min()) for network in ("highway", "plain"))
    if not 0 < highway < plain < np.inf:
        return ""
    return (
        f"**Depth:** at 100 layers, {_times(plain / highway)} times lower training loss than plain networks "
        f"({number(highway)} against {number(plain)}; the best of {search.config.num_runs} runs of each, "
        f"{search.config.epochs} epochs of MNIST)."
    )


def _speed(measured: Path) -> str:
    """How much faster than PyTorch a population trains, on every device where that was measured at depth 100."""
    devices: list[str] = []
    for path in sorted(measured.glob("population_*_depth100.json")):
        timing = read_json(path)
        ms = {name: contender["ms"] for name, contender in timing["contenders"].items() if "ms" in contender}
        if not {"ours", "torch_loop"} <= ms.keys():
            continue
        count, device = timing["contenders"]["ours"]["device"].split(" x ")
        said = f"{_times(ms['torch_loop'] / ms['ours'])} times"
        said += " as fast as a loop over PyTorch modules" * (not devices)
        said += f" ({count} CPU cores" if device == "cpu" else f" ({count} {device}"
        for name, words in ("torch_bmm", "PyTorch batched by hand"), ("jax_vmap", "`jax.vmap`"):
            if name in ms:
                said += f", {_times(ms[name] / ms['ours'])} times {words}"
        devices.append(said + ")")
    if not devices:
        return ""
    return (
        f"**Speed:** {timing['work']['runs']} networks of {timing['work']['depth']} layers train {listed(devices)}; "
        "from [benchmarks](docs/performance.md)."
    )


def _very_deep(found: Mapping[str, Workdir]) -> str:
    """How far networks of more than a thousand layers get; empty unless they have not stalled."""
    search = found.get("very_deep")
    if search is None or claims.very_deep(search).verdict != claims.HOLDS:
        return ""
    ranking = search.results["highway"].ranking
    return (
        f"**{search.depth:,} layers:** the best of {len(ranking.best)} highway networks gets from loss "
        f"{number(claims.CHANCE)} (guessing) to {number(ranking.best.min())} in "
        f"{ranking.best_epoch[ranking.order[0]]} epochs of MNIST (a separate search, not the figure's)."
    )


def _inside(found: Mapping[str, Workdir]) -> str:
    """What lesions say of the figure's network of 50 layers; empty if it was not looked into."""
    looked = analysis(found["figure1_depth50"].directory) if "figure1_depth50" in found else None
    if looked is None:
        return ""
    return (
        "**Inside the gates:** figures and lesions of any highway network; the figure's best 50-layer network can lose "
        f"{looked['summary']['droppable_layers']} of its {len(looked['lesions']['error'])} highway layers at once "
        f"before its error on the {looked['images']:,} training images rises by more than {TOLERATED:.0%} "
        "([more](docs/gates.md))."
    )


def figure1_table(searches: Mapping[int, Workdir]) -> str:
    """The numbers of Figure 1, a row per depth and network."""
    rows = []
    for depth, network in itertools.product(DEPTHS, ("highway", "plain")):
        search = searches.get(depth)
        if search is None or network not in search.results:
            rows.append((depth, network, *["not run"] * 2, *[""] * 7))
            continue
        result = search.results[network]
        ranking, curve = result.ranking, result.curve(result.runs[result.ranking.order[0]])
        rows.append(
            (
                depth,
                network,
                number(ranking.best.min()),
                number(ranking.mean_of_best(10)) if result.num_runs >= 10 else "",
                number(ranking.mean_of_best(max(1, result.num_runs // 10))),
                number(ranking.median()),
                *(_epochs(claims.epochs_to(loss, curve)) for loss in (0.1, 0.01, 0.001)),
                f"{ranking.diverged.sum()} of {result.num_runs}",
                duration(result.seconds) if search.finished else sentences.state(search),
            )
        )
    return markdown_table(FIGURE1.split("|"), rows)


def tanh_table(directory: Path) -> str:
    """Section 4's claims of the best network, and of one more like the paper's; empty if that was not run."""
    ours, alike = (analysis(directory / name) for name in ("figure1_depth50", "gates_tanh"))
    if alike is None:
        return ""
    judged = zip(claims.gates(ours), claims.gates(alike), strict=True)
    rows = [
        (best.words, f"**{best.verdict}**: {best.evidence}", f"**{tanh.verdict}**: {tanh.evidence}")
        for best, tanh in judged
    ]
    return markdown_table(("the paper", "our best", "tanh, gates from -2"), rows)


def slower_table(found: Mapping[str, Workdir]) -> str:
    """Networks whose learning rate decays slowly, beside those of Figure 1; empty if they were not run."""
    rows = []
    for network in ("highway", "plain"):
        for depth, slow in by_depth(found, f"slow_decay_{network}").items():
            usual = found.get(f"figure1_depth{depth}")
            for search in (usual, slow):
                if search is None or network not in search.results:
                    continue
                result, (low, high) = search.results[network], search.config.search.decay
                best = result.ranking.order[0]
                rows.append(
                    (
                        depth,
                        network,
                        f"{low:g} to {high:g}",
                        result.num_runs,
                        search.config.epochs,
                        number(result.ranking.best[best]),
                        f"{result.hyperparameters['decay'][best]:.3f}",
                        result.hyperparameters["activation"][best],
                    )
                )
    if not rows:
        return ""
    header = ("depth", "network", "decay drawn from", "runs", "epochs", "best loss", "its decay", "its activation")
    return markdown_table(header, rows)


def figure1(searches: Mapping[int, Workdir]) -> Figure:
    """Figure 1 of all depths."""
    return plotting.comparison(
        [search.results for search in searches.values()],
        [f"depth {depth}" for depth in searches],
        "Figure 1 on MNIST",
        depths=list(searches),
        best_of=0.1,
    )


def origins(found: Mapping[str, Workdir]) -> str:
    """Where every result comes from, as a Markdown table."""
    rows = []
    for name, search in found.items():
        about = search.provenance
        seconds = sum(about.get("seconds", {}).values())
        versions = about.get("versions", {})
        rows.append(
            (
                f"[{name}](../results/{name})",
                about.get("commit") or "",
                _device(about),
                f"jax {versions.get('jax', '')}, flax {versions.get('flax', '')}",
                duration(seconds) if seconds else "",
                DATA.get(about.get("data_md5", {}).get("train", ""), search.config.dataset),
                sentences.state(search) or "finished",
            )
        )
    return markdown_table(("result", "commit", "device", "versions", "training", "data", "state"), rows)


def _device(about: Mapping[str, Any]) -> str:
    """What a provenance says that work was done on."""
    if about.get("platform") == "cpu":
        return f"{about.get('cpu_cores', '?')} CPU cores"
    return f"{about.get('devices', '?')} x {about.get('device', '?')}"


def _times(ratio: float) -> str:
    """Such as 2.5, 14.6, 2,676."""
    return f"{ratio:,.{0 if ratio >= 100 else 1}f}"


def _range(numbers: set[int]) -> str:
    """Such as "60 to 100", or the only one."""
    return " to ".join(map(str, sorted({min(numbers), max(numbers)})))


def _epochs(epochs: float) -> str:
    return f"{epochs:.0f}" if np.isfinite(epochs) else ""

"""The report as its reader sees it: a self-contained page with the numbers of the workdirs."""

import base64
import csv
import functools
import gzip
import hashlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from PIL import Image

from experiments import report, search
from experiments.app import command_line, entry
from experiments.app.errors import UserError
from experiments.configs import convolutional, figure1, loading
from experiments.configs.keys import config_of, leaves
from experiments.pages import commands, figures, interactive, outcomes, page
from experiments.workdir import reading
from experiments.workdir.contents import Workdir
from experiments.workdir.identity import FREE, as_json
from highway_jax import checkpoint, plotting, population
from highway_jax.population import Result
from tests.workdirs import write_workdir

ROOT = Path(__file__).parents[2]
NAN, INF = np.nan, np.inf
SMALL = {"highway": [[2, 1.5, 0.7], [2, INF, NAN], [1, 3, 2]], "plain": [[2, 1.75, 0.9], [INF, INF, INF], [1, 3, 1e-7]]}
SMALL = {network: np.float32(curves) for network, curves in SMALL.items()}


class Page(HTMLParser):
    """A page's text, tables, pictures, scripts and whatever a browser would fetch.

    `shown` has what the interactive figures are drawn from: a dictionary of JSON for every search.
    """

    def __init__(self, path):
        super().__init__()
        self.tables, self.pictures, self.fetched, self.tags, self.text, self.cell = [], [], [], set(), "", False
        self.scripts, self.shown, self.policy, self.script = [], [], "", None
        html = path.read_text(encoding="utf-8")
        self.fetched += re.findall(r"url\(|@import|https?:", html)
        self.feed(html)
        self.runs_code = [code for kind, code in self.scripts if kind is None]
        packed = [code for kind, code in self.scripts if kind == "text/plain"]
        unpacked = [gzip.decompress(base64.b64decode(code)).decode() for code in packed]
        self.shown = list(map(json.loads, unpacked[1:]))
        # Exactly the scripts that the policy names may run: the page's own, and the library that it unpacks.
        digests = [
            base64.b64encode(hashlib.sha256(c.encode()).digest()).decode() for c in self.runs_code + unpacked[:1]
        ]
        assert self.policy.startswith("default-src 'none';")
        allowed = re.findall(r"'sha256-([^']+)'", self.policy)
        assert not self.scripts or allowed == digests
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        for name, value in attributes:
            if name == "src" and value.startswith("data:image/png;base64,"):
                self.pictures.append(base64.b64decode(value.partition(",")[2]))
            elif name in ("src", "srcset", "href", "data", "poster", "action") and not value.startswith("#"):
                self.fetched.append(value)
        attributes = dict(attributes)
        if tag == "script":
            self.script = attributes.get("type")
            self.scripts.append((self.script, ""))
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy":
            self.policy = attributes["content"]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

        self.cell = tag in ("td", "th") or (self.cell and tag != "table")

    def handle_endtag(self, tag):
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.lasttag == "script" and self.cdata_elem == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
            return
        self.text += data
        if self.cell:
            self.tables[-1][-1][-1] += data.strip()

    def runs(self):
        """The tables of runs, as dictionaries; the best ones', then the diverged ones'."""
        tables = [table for table in self.tables if "learning_rate" in table[0]]
        return [[dict(zip(table[0], row, strict=True)) for row in table[1:]] for table in tables]


def write_report(*args):
    """The page that the program makes, in this process, without a warning."""
    args = list(map(str, args))
    report.main(args)
    several = Path(args[0]).parent / "report" if len(args) > 1 else args[0]
    output = next((arg.partition("=")[2] for arg in args if arg.startswith("--output=")), several)
    page = Page(Path(output) / "report.html")
    assert not page.fetched
    for picture in page.pictures:
        Image.open(io.BytesIO(picture)).verify()
    return page


DRAWN = True
# The second: of ml_collections, which loads configs.
pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning"),
]


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made, but every picture of them is a dot: to draw them is most of a page's work."""
    dot = io.BytesIO()
    Image.new("RGB", (1, 1)).save(dot, format="png")
    monkeypatch.setattr(figures, "png", lambda figure: dot.getvalue())


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search's workdir, and a real process that made a report of it."""
    directory = tmp_path_factory.mktemp("report") / "work"
    arguments = ["--config=digits_depth10", "--config.num_runs=12", "--config.epochs=2", "--config.batch_size=500"]
    search.main([*arguments, f"--workdir={directory}"])
    command = [sys.executable, "-m", "experiments.report", str(directory)]
    return directory, subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_report_of_a_real_search(searched):
    directory, process = searched
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout == f"report: {directory}/report.html\n"
    page = Page(directory / "report.html")
    assert not page.fetched
    files = [directory / f"report_{name}.png" for name in ("figure1", "losses")]
    assert page.pictures == [file.read_bytes() for file in files]
    assert (directory / "report_hyperparameters.png").exists()
    assert (directory / "report.html").stat().st_size < 1_000_000
    for text in (
        "Highway and plain networks on digits",
        "depth 10; 12 runs of each network; 2 epochs",
        "orbax-checkpoint",
    ):
        assert text in page.text
    assert "unfinished" not in page.text


def test_the_best_runs_are_those_of_runs_csv(searched):
    directory, _ = searched
    with (directory / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    tables = Page(directory / "report.html").runs()[:2]
    for network, table in zip(("highway", "plain"), tables, strict=True):
        mine = sorted((row for row in rows if row["network"] == network), key=lambda row: int(row["rank"]))
        assert len(table) == 10
        assert table == [{key: row[key] for key in table[0]} for row in mine[:10]]
        hidden = {"network", "diverged", "epochs"} | ({"transform_bias"} if network == "plain" else set())
        assert set(mine[0]) - set(table[0]) == hidden


@pytest.mark.usefixtures("undrawn")
def test_the_command_in_the_page_makes_the_same_config(tmp_path):
    networks = {"highway": SMALL["highway"]}
    changes = {"seed": 3, "networks": ("highway",), "width": {"highway": 40}, "search": {"learning_rate": (0.01, 0.1)}}
    directory = write_workdir(tmp_path / "a b", networks, depth=20, **changes)
    command = commands.command(reading.load(directory))
    assert command in write_report(directory).text
    words = shlex.split(command)
    assert words[:4] == ["python", "-m", "experiments.search", "--config=digits_depth20"]
    assert words[-1] == f"--workdir={directory}"
    assert repeated(command) == leaves(as_json(reading.load(directory).config))


def repeated(command):
    """The config that a command of the page gives a program."""
    name, overrides, rest = command_line.split_config_flags(shlex.split(command)[3:])
    config = loading.load(name, overrides).config
    assert [argument.partition("=")[0] for argument in rest] == ["--workdir"]
    return leaves(as_json(config))


KEPT = sorted(path.parent for path in (ROOT / "results").glob("*/config.json"))


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("directory", KEPT, ids=lambda path: path.name)
def test_kept_workdirs_of_older_versions_are_reported_with_the_command_that_repeats_them(directory, tmp_path):
    found = reading.load(directory)
    config = repeated(commands.command(found))
    defaults = leaves(as_json(config_of(figure1.KEYS if found.program == "search" else convolutional.KEYS)))
    given = leaves(json.loads((directory / "config.json").read_text()))
    assert config == {**defaults, **given, **{key: defaults[key] for key in FREE}}
    if directory.name == "very_deep":
        page.write([found], tmp_path)
        assert commands.command(found) in Page(tmp_path / "report.html").text


CHANGES = {
    "num_runs": st.integers(1, 99),
    "data_dir": st.one_of(st.none(), st.text(max_size=5)),
    "evaluate_every": st.one_of(st.none(), st.integers(1, 9)),
    "mesh": st.one_of(st.none(), st.just([2, 1])),
    "dataset": st.sampled_from(["digits", "mnist", "a b", "None", "3"]),
    "networks": st.sampled_from([["plain"], ["highway", "plain"]]),
    "remat": st.booleans(),
    "search.learning_rate": st.lists(st.floats(1e-9, 1), min_size=1, max_size=2),
    "search.halving.every": st.one_of(st.none(), st.integers(1, 9)),
    "learning_rate": st.one_of(st.floats(1e-9, 1), st.just([0.01, 0.02])),
    "output_std": st.one_of(st.none(), st.floats(0.01, 1)),
    "transform_bias": st.one_of(st.floats(-9, 0), st.just([-3.0, -1.0]), st.just(-2)),
    "boundaries": st.lists(st.integers(1, 9), max_size=2),
    "teacher": st.one_of(st.none(), st.just("runs/a b")),
    "new": st.just(1),
}


@settings(max_examples=25)
@given(name=st.sampled_from(sorted(loading.known_configs())), data=st.data())
def test_the_command_gives_the_same_config_or_there_is_none(name, data):
    config = as_json(loading.load(name, {}).config)
    keys = sorted(CHANGES.keys() & (leaves(config).keys() | {"new"}))
    changes = data.draw(st.lists(st.sampled_from(keys), max_size=3, unique=True)) if keys else []
    changes = {key: data.draw(CHANGES[key]) for key in changes}
    for key, value in changes.items():
        *parents, leaf = key.split(".")
        functools.reduce(dict.get, parents, config)[leaf] = value
    command = commands.command(Workdir(Path("x"), ConfigDict(config), (), 1, {}, {}, True))
    if command:
        assert repeated(command) == leaves(config)
    else:
        assert changes.keys() & {"new", "learning_rate", "transform_bias", "output_std", "data_dir"}


def test_a_config_that_no_flags_make_is_said_to_be_ones_own(tmp_path):
    changes = {"a": {}, "b": {"mine": 3}}
    found = [reading.load(write_workdir(tmp_path / name, SMALL, **more)) for name, more in changes.items()]
    picture = figures.Picture("x.png", b"")
    text = page.render(found, {key: [picture] for key in ("figure1", "hyperparameters", "losses")})
    assert "The config of depth 10, b is one of its own" in text and "of depth 10, a is one of" not in text
    assert text.count("experiments.search ") == 1


@pytest.mark.usefixtures("undrawn")
def test_depths_make_one_page(tmp_path):
    for depth in (20, 100, 10):
        factor = depth / 10
        curves = {"highway": SMALL["highway"], "plain": SMALL["plain"] * np.float32(factor)}
        write_workdir(tmp_path / f"d{depth}", curves, depth=depth)
    page = write_report(tmp_path / "d100", tmp_path / "d10", tmp_path / "d20", f"--output={tmp_path}/out/page")
    assert "From depth 10 to 100, the best loss goes from 0.70 to 0.70 for highway" in page.text
    assert "and from 1.0e-7 to 1.0e-6 for plain networks" in page.text
    assert "Depth 20: highway reaches 0.70, plain reaches 2.0e-7; highway's is 3,500,000 times plain's." in page.text
    assert "differ in more" not in page.text
    glance = page.tables[0]
    assert [row[0] for row in glance[1:]] == ["depth 10", "", "depth 20", "", "depth 100", ""]
    assert glance[1][2:7] == ["0.70", "1.2", "1.0", "1 of 3", "0"]  # highway: 0.7, 2, 1
    assert glance[2][5:7] + glance[2][8:] == ["1 of 3", "1", "1 min 15 s"]
    assert len(page.pictures) == 2 and len(page.shown) == 3
    assert not (tmp_path / "d100/report.html").exists()


@pytest.mark.usefixtures("undrawn")
def test_more_than_two_kinds_of_network_make_one_page(tmp_path):
    kinds = ("highway", "plain", "residual", "fixed", "lstm")
    for depth in (50, 10):
        curves = {kind: SMALL["plain"] * np.float32(i + 1) for i, kind in enumerate(kinds)}
        write_workdir(tmp_path / f"d{depth}", curves, depth=depth, networks=kinds)
    page = write_report(tmp_path / "d10", tmp_path / "d50")
    assert "Highway, plain, residual, fixed and lstm networks on digits" in page.text
    assert "A panel per search" in page.text
    assert [row[1] for row in page.tables[0][1:]] == [*kinds, *kinds]


@pytest.mark.usefixtures("undrawn")
def test_what_depth_does_not_tell_apart_is_named(tmp_path):
    for name, changes in {"a": {}, "b": {"epochs": 3, "seed": 9}, "c": {"dataset": "mnist"}}.items():
        write_workdir(tmp_path / name, SMALL, **changes)
    page = write_report(tmp_path / "a", tmp_path / "b")
    assert "depth 10, a" in page.text and "depth 10, b" in page.text
    assert "differ in more than depth: seed" in page.text
    assert "From depth" not in page.text
    page = write_report(tmp_path / "a", tmp_path / "c")
    assert "Digits, depth 10: highway" in page.text and "Mnist, depth 10: highway" in page.text
    assert "differ in more than depth: dataset" in page.text
    shutil.copytree(tmp_path / "a", tmp_path / "other/a")
    page = write_report(tmp_path / "a", tmp_path / "other/a")
    assert f"depth 10, {tmp_path}/other/a" in page.text


@pytest.mark.usefixtures("undrawn")
def test_an_unfinished_search_says_so(tmp_path):
    half = write_workdir(tmp_path / "half", {"highway": SMALL["highway"]}, epochs=400, finished=False)
    page = write_report(half)
    assert "depth 10 is unfinished: epoch 3 of 400 of highway; no results of plain yet." in page.text
    done = write_workdir(tmp_path / "done", SMALL, depth=20, epochs=3)
    page = write_report(half, done)
    assert "depth 10 is unfinished" in page.text and "depth 20 is unfinished" not in page.text
    assert "differ in more than depth: epochs" in page.text


ODD = {
    "all runs diverged": {"highway": np.full((3, 2), INF), "plain": np.full((3, 2), INF)},
    "one run of one epoch": {"highway": [[0.5]], "plain": [[0.25]]},
    "losses of 0": {"highway": [[1, 0.0], [0, 0]], "plain": [[1, 2.0], [3, 0]]},
    "nothing but 0": {"plain": np.zeros((3, 2))},
    "one network": {"plain": [[1.0, 2.0], [2.0, 3.0]]},
    "equal losses": {"highway": np.ones((30, 2)), "plain": np.ones((30, 2))},
    "huge losses": {"highway": [[1e30, 1e-30]], "plain": [[3e35, 2e35]]},
}

ALONE = ("one run of one epoch", "huge losses")


@pytest.mark.parametrize("kind", ODD)
def test_odd_searches_make_a_page_too(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(plotting, "distribution", lambda *_: Figure())  # that of all is drawn below
    curves = {network: np.float32(losses) for network, losses in ODD[kind].items()}
    page = write_report(write_workdir(tmp_path / "x", curves, networks=tuple(curves)))
    assert len(page.pictures) == 2
    assert (tmp_path / "x/report_hyperparameters.png").exists() == (kind not in ALONE)  # otherwise none vary
    assert len(page.shown) == (kind not in ALONE)
    if kind == "all runs diverged":
        assert "no highway run ever had a finite loss, no plain run ever had a finite loss." in page.text
        assert [row["diverged_in_epoch"] for row in page.runs()[-1]] == ["1"] * 3


def write_own(directory, num_runs=30, rank_by="valid_mae", mode="min", finished=True, **curves):
    """The workdir of a search by `population.fit`, of a task that is none of the programs'."""
    random = np.random.default_rng(num_runs)
    values = {
        "lr": np.float32(10 ** random.uniform(-4, 0, num_runs)),
        "width": random.choice([8, 32], num_runs),
        "norm": random.choice(np.array(["batch", "layer"], object), num_runs),
    }
    losses = np.float32(random.uniform(0.1, 2, (num_runs, 3)))
    losses[1, 1:] = INF, NAN
    measured = np.where(np.isfinite(losses), losses / 2, NAN)
    numbers = {"train_loss": losses, rank_by: measured} | curves
    directory.mkdir(parents=True)
    result = Result(np.arange(num_runs), values, numbers, rank_by, mode, 3 if finished else 9, 1, 75.0, 0, finished)
    population.save(result, directory)
    return result


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("rank_by", "mode"), [("valid_mae", "min"), ("valid_accuracy", "max")])
def test_a_search_of_ones_own_has_a_page_in_its_own_words(rank_by, mode, tmp_path):
    result = write_own(tmp_path / "mine", rank_by=rank_by, mode=mode)
    page = write_report(tmp_path / "mine")
    best = result.ranking.order[0]
    said = (
        f"Best {rank_by} {result.ranking.best[best]:.4g} of run {best}, after epoch {result.ranking.best_epoch[best]}."
    )
    assert said in page.text
    assert f"ranked by their {'lowest' if mode == 'min' else 'highest'} {rank_by}" in page.text
    assert not re.search(r"\bloss(es)?\b|nats|depth|network|experiments\.(search|train)", page.text)
    assert len(page.pictures) == 2
    (source,) = sources(page.shown[0])
    assert source["x0_0"] == pytest.approx(result.hyperparameters["lr"].tolist(), rel=1e-4)
    assert source["text2_0"] == result.hyperparameters["norm"].tolist()
    table = result.table().sort_values("rank")
    best_runs, diverged = (table for table in page.tables if "norm" in table[0] and "run" in table[0])
    assert best_runs[0][:5] == ["rank", "run", "lr", "width", "norm"] and f"best_{rank_by}" in best_runs[0]
    assert [row[1] for row in best_runs[1:]] == [str(run) for run in table["run"][:10]]
    assert best_runs[1][2] == str(result.hyperparameters["lr"][best])
    assert [row[:2] for row in diverged] == [["diverged_in_epoch", "run"], ["2", "1"]]
    glance, mattered = page.tables[:2]
    assert (
        glance[0][2:6] == [f"best {rank_by}", "mean of best 10", "median", "diverged"] and glance[1][-1] == "1 min 15 s"
    )
    assert mattered[0][2:] == ["lr", "width", "norm"]
    assert ["rank_by", rank_by] in page.tables[-1]


@pytest.mark.usefixtures("undrawn")
def test_searches_of_ones_own_are_labelled_by_their_directories(tmp_path):
    write_own(tmp_path / "a")
    write_own(tmp_path / "b", num_runs=40, finished=False)
    page = write_report(tmp_path / "a", tmp_path / "b")
    assert "a and b: runs ranked by valid_mae" in page.text and "a and b; 30 and 40 runs; 3 and 9 epochs." in page.text
    assert "b is unfinished: epoch 3 of 9." in page.text and "a is unfinished" not in page.text
    assert "These searches differ in epochs, num_runs" in page.text
    assert [row[0] for row in page.tables[0][1:]] == ["a", "b"]


def test_a_search_of_ones_own_is_drawn_whatever_its_numbers_are(tmp_path):
    losses = np.float32([[-1, -2], [INF, NAN], [3, 0]])
    for mode in "min", "max":
        measured = np.where(np.isfinite(losses), losses, NAN)
        write_own(tmp_path / mode, 3, "valid_score", mode, train_loss=losses, valid_score=measured)
        assert len(write_report(tmp_path / mode).shown) == 1
    write_own(tmp_path / "more", 3, "valid_score", "max", train_loss=losses, valid_score=measured)
    write_report(tmp_path / "max", tmp_path / "more")


@pytest.mark.usefixtures("undrawn")
def test_what_one_page_cannot_hold_is_refused(tmp_path):
    work = write_workdir(tmp_path / "work", SMALL)
    write_own(tmp_path / "mine")
    write_own(tmp_path / "other", rank_by="valid_accuracy", mode="max")
    with pytest.raises(UserError, match=r"mine' is of population.fit, and others are of the programs here"):
        report.main([str(work), str(tmp_path / "mine")])
    with pytest.raises(UserError, match=r"other' is ranked by valid_accuracy \(max\), '.*mine' by valid_mae \(min\)"):
        report.main([str(tmp_path / "mine"), str(tmp_path / "other")])
    with pytest.raises(UserError, match="holds none of the networks of Tables 1 to 3"):
        report.main(["--tables", str(tmp_path / "mine")])
    for directory in work, tmp_path / "mine":
        with pytest.raises(UserError, match="holds no accuracies epoch by epoch"):
            report.main(["--curves", str(directory)])


@pytest.mark.usefixtures("undrawn")
def test_a_page_of_several_workdirs_leaves_the_first_ones_own_alone(tmp_path, monkeypatch, capsys):
    for name in "a", "b":
        write_workdir(tmp_path / name, SMALL)
    write_report(tmp_path / "a")
    before = (tmp_path / "a/report.html").read_bytes()
    monkeypatch.chdir(tmp_path)
    report.main(["a", "b/"])
    assert capsys.readouterr().out.endswith("report: report/report.html\n")
    monkeypatch.chdir("a")
    report.main([".", "../b"])
    assert capsys.readouterr().out == f"report: {tmp_path}/report/report.html\n"
    assert (tmp_path / "a/report.html").read_bytes() == before


def test_odd_searches_make_one_page_together(tmp_path, monkeypatch):
    monkeypatch.setattr(plotting, "hyperparameters", lambda *_: Figure())  # every search's own are drawn above
    for depth, losses in enumerate(ODD.values(), start=2):
        curves = {network: np.float32(curve) for network, curve in losses.items()}
        write_workdir(tmp_path / str(depth), curves, depth=depth, networks=tuple(curves))
    page = write_report(*(tmp_path / str(depth + 2) for depth in range(len(ODD))))
    assert len(page.shown) == len(ODD) - len(ALONE)


@pytest.mark.usefixtures("undrawn")
def test_diverged_runs_are_all_there(tmp_path):
    directory = write_workdir(tmp_path / "x", SMALL)
    highway, plain = write_report(directory).runs()[2:]
    assert [(row["run"], row["diverged_in_epoch"], row["best_loss"]) for row in highway] == [("1", "2", "2.0")]
    assert [(row["run"], row["diverged_in_epoch"], row["best_loss"]) for row in plain] == [("1", "1", "inf")]


def test_text_is_escaped_everywhere(tmp_path):
    evil = '<b onclick="x">&amp;$x_$"'
    directories = [write_workdir(tmp_path / f"{i}{evil}", SMALL, dataset=evil) for i in range(2)]
    (directories[0] / "analysis.json").write_text('{"captions": {"figure2.png": "<u>layers</u>"}}')
    shutil.copy(next(iter((ROOT / "docs/images").glob("*.png"))), directories[0] / "figure2.png")
    page = write_report(*directories)
    assert not {"b", "u"} & page.tags
    assert evil in page.text and "<u>layers</u>" in page.text
    assert page.runs_code == [interactive.LOADER]


@pytest.mark.usefixtures("undrawn")
def test_text_of_a_stranger_is_plain_text_to_the_interactive_figures_too(tmp_path):
    """A string would be a formula between dollars, whose parser Bokeh would fetch; in a tooltip a field of the data."""
    evil = "</script><script>$$x$$</script>", "\\(x\\)", "@run{safe} <i>"
    values = {name: np.arange(9) + 0.5 for name in evil[:2]} | {evil[2]: np.array([*"abc"] * 3, object)}
    values[evil[2]][::2] = evil[0]
    numbers = {"train_loss": np.ones((9, 2)), evil[0]: np.arange(18.0).reshape(9, 2)}
    (tmp_path / "evil").mkdir()
    population.save(Result(np.arange(9), values, numbers, evil[0], "min", 2), tmp_path / "evil")
    page = write_report(tmp_path / "evil")
    assert page.runs_code == [interactive.LOADER] and "i" not in page.tags
    labels = list(found(page.shown[0], "PlainText"))
    for text in evil[:2]:
        assert text in [label["text"] for label in labels]
    for axis in (*found(page.shown[0], "LinearAxis"), *found(page.shown[0], "LogAxis")):
        assert axis["axis_label"]["name"] == "PlainText"
        assert all(
            label["name"] == "PlainText" for _, label in axis.get("major_label_overrides", {}).get("entries", [])
        )
    for tool in found(page.shown[0], "HoverTool"):
        for _, value in tool["tooltips"]:
            assert re.sub(r"@\w+_0", "", value) in ("", ", rank ", " (epoch )")


def found(value, name):
    """The attributes of every model of this name in a document of Bokeh's."""
    if isinstance(value, dict):
        if value.get("name") == name and "attributes" in value:
            yield value["attributes"]
        value = list(value.values())
    for item in value if isinstance(value, list) else ():
        yield from found(item, name)


def sources(shown):
    """The columns that a search's figures share, those of single lines left out."""
    columns = [dict(source["data"]["entries"]) for source in found(shown, "ColumnDataSource")]
    return [source for source in columns if "run_0" in source or "run_1" in source]


def test_every_run_is_in_the_interactive_figures(searched):
    """As runs.csv and curves.csv have it, in one source of both networks: run i of each is the same draw."""
    directory, _ = searched
    (shown,) = Page(directory / "report.html").shown
    (source,) = sources(shown)
    result = reading.load(directory).results
    for i, kind in enumerate(("highway", "plain")):
        ranking, losses = result[kind].ranking, result[kind].curves["train_loss"]
        assert source[f"network_{i}"] == [kind] * 12 and source[f"run_{i}"] == list(range(12))
        assert source[f"rank_{i}"] == ranking.ranks.tolist()
        assert [shape == "x" for shape in source[f"shape_{i}"]] == ranking.diverged.tolist()
        for run in range(12):
            finite = np.isfinite(losses[run])
            assert source[f"epochs_{i}"][run] == (1 + np.flatnonzero(finite)).tolist()
            np.testing.assert_allclose(source[f"curve_{i}"][run], losses[run][finite], rtol=1e-4)
        np.testing.assert_allclose(source[f"x0_{i}"], result[kind].hyperparameters["learning_rate"], rtol=1e-4)
        assert source[f"text3_{i}"] == result[kind].hyperparameters["activation"].tolist()
    scales = [figure["x_scale"]["name"] for figure in found(shown, "Figure")]
    assert scales == ["LinearScale", "LogScale", *["LinearScale"] * 4]  # epochs, learning rate, the others


def test_no_run_is_left_out_however_many_there_are():
    losses = np.random.default_rng(0).uniform(size=(1000, 3))
    values = {"lr": losses[:, 0], "kind": np.array(["a", "b"] * 500, object)}
    results = {kind: Result(np.arange(1000), values, {"train_loss": losses}, "train_loss", "min", 3) for kind in "ab"}
    (source,) = sources(json.loads(interactive.figures(results, "loss", "x")[0]))
    assert [len(source[f"curve_{i}"]) for i in range(2)] == [1000, 1000]
    other = {
        **results,
        "b": Result(np.arange(1000), {"lr": losses[:, 1]}, {"train_loss": losses}, "train_loss", "min", 3),
    }
    assert len(sources(json.loads(interactive.figures(other, "loss", "x")[0]))) == 2  # not the same draws


def test_epochs_that_are_left_out_of_long_curves_are_said(monkeypatch):
    monkeypatch.setattr(interactive, "POINTS", 10)
    losses = np.linspace(1, 0.1, 24, dtype=np.float32).reshape(2, 12)
    losses[1, 8:] = np.nan
    result = Result(np.arange(2), {"lr": losses[:, 0]}, {"train_loss": losses}, "train_loss", "min", 12)
    shown = json.loads(interactive.figures({"a": result}, "loss", "x")[0])
    (source,) = sources(shown)
    assert source["epochs_0"] == [[1, 4, 7, 10, 12], [1, 4, 7, 8]]  # 24 numbers: one of three, and the last
    assert "epoch (one of 3 is drawn, and the last)" in json.dumps(shown)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_browser_without_network_shows_the_interactive_figures(searched):
    directory, _ = searched
    options = ["--headless", "--no-sandbox", "--proxy-server=127.0.0.1:9", "--window-size=1400,6000"]
    command = ["chromium", *options, "--virtual-time-budget=60000", "--dump-dom", f"file://{directory}/report.html"]
    # Virtual time can end while a real thread still decompresses; that the page is broken shows every time.
    for _ in range(5):
        drawn = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
        if 'class="asks shown"' in drawn:
            break
    assert 'class="asks shown"' in drawn and "newer browser" not in drawn.partition("<script")[0]


@pytest.mark.usefixtures("undrawn")
def test_the_figures_of_an_analysis_are_shown(tmp_path):
    directory = write_workdir(tmp_path / "x", SMALL)
    plain = write_report(directory)
    assert "Inside the gates" not in plain.text
    for width, name in enumerate(("figure1", "figure2", "depth"), start=1):
        Image.new("RGB", (width, 5)).save(directory / f"{name}.png")
    assert "Inside the gates" not in write_report(directory).text
    captions = {"figure2.png": "What the gates do.", "depth.png": "How deep.", "../figure3.png": "Not there."}
    (directory / "analysis.json").write_text(json.dumps({"captions": captions}))
    page = write_report(directory)
    assert all(text in page.text for text in ("Inside the gates", "What the gates do.", "How deep."))
    shown = [Image.open(io.BytesIO(picture)).width for picture in page.pictures]
    assert shown[-2:] == [2, 3] and len(shown) == len(plain.pictures) + 2
    for damaged in "{", "{}":
        (directory / "analysis.json").write_text(damaged)
        with pytest.raises(UserError, match=r"analysis\.json is damaged"):
            report.main([str(directory)])


MISTAKES = [
    ([], "no workdir is given"),
    (["nowhere"], "workdir 'nowhere' does not exist"),
    (["setup.py"], "workdir 'setup.py' is a file"),
    (["experiments"], "experiments/config.json is missing"),
    (["{work}", "{work}/."], "workdir '.*' is given twice"),
    (["{work}", "--ouptut=x"], "--ouptut is not a flag"),
    (["{work}", "--output=setup.py"], "--output is 'setup.py', which cannot be written: File exists"),
    (["{work}", "--output=/proc/nowhere"], "--output is '/proc/nowhere', which cannot be written"),
    (["{work}", "{cut}"], "curves.csv is damaged: it is cut off"),
]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("args", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_a_mistake_is_one_line_and_status_2(args, message, tmp_path, monkeypatch, capsys):
    work, cut = (write_workdir(tmp_path / name, SMALL) for name in ("work", "cut"))
    (cut / "curves.csv").write_text((cut / "curves.csv").read_text()[:-5])
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["report", *(arg.format(work=work, cut=cut) for arg in args)])
    with pytest.raises(SystemExit) as stop:
        entry.run(report.main, report.__doc__)
    errors = capsys.readouterr().err
    assert (stop.value.code, errors.count("\n"), errors[:7]) == (2, 1, "error: "), errors
    assert re.search(message, errors)
    assert not (work / "report.html").exists()


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), ties=st.integers(1, 60))
def test_what_a_hyperparameter_explains(seed, ties):
    """All of it where it decides the loss, whatever the shape; 0 on average where it does nothing; never outside."""
    random = np.random.default_rng(seed)
    values = random.uniform(size=100).astype(np.float32)
    names = np.where(values < np.median(values), "relu", "tanh")
    noise = random.integers(ties + 1, size=100).astype(np.float32)
    noise[0] = np.inf
    share = explained(values, noise)
    assert 0 <= share <= 0.4
    assert explained(values, values) > 0.93
    assert explained(values, -values) > 0.93
    assert explained(names, np.where(names == "relu", 1.0, 2.0)) > 0.99
    assert explained(np.where(names == "relu", 8, 32), np.where(names == "relu", 1.0, 2.0)) > 0.99
    assert explained(values, np.exp(noise)) == pytest.approx(share)  # ranks only
    assert explained(np.full(100, 0.5, np.float32), noise) is None
    assert explained(np.full(100, NAN, np.float32), noise) is None


def explained(values, losses):
    curves = {"train_loss": losses[:, None]}
    return outcomes.explained(values, Result(np.arange(len(losses)), {}, curves, "train_loss", "min", 1))


def test_a_finished_workdir_is_read_only_as_it_was_written(tmp_path):
    directory = write_workdir(tmp_path / "work", SMALL)
    checkpoint.write_sums(directory, [directory / "runs.csv"])
    reading.load(directory)
    (directory / "runs.csv").write_text((directory / "runs.csv").read_text().replace("relu", "tanh"))
    with pytest.raises(UserError, match=r"runs.csv is damaged: its checksum is wrong"):
        reading.load(directory)


def test_a_workdir_of_an_older_format_says_so(tmp_path):
    directory = write_workdir(tmp_path / "work", SMALL)
    (directory / "provenance.json").write_text("{}")
    with pytest.raises(UserError, match="written by another version, in format 1; this version reads format 3"):
        reading.load(directory)

"""A search's runs as figures that answer the mouse: all curves, and hyperparameters against the best of every run.

Bokeh draws them from JSON. The page holds that, and Bokeh's JavaScript, compressed; `interactive.js` shows them.
"""

import base64
import gzip
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import bokeh
import numpy as np
from bokeh.document import Document
from bokeh.models import (
    BoxSelectTool,
    ColumnDataSource,
    FixedTicker,
    GlyphRenderer,
    HoverTool,
    Legend,
    LegendItem,
    MultiLine,
    PlainText,
    Range1d,
    Scatter,
    Span,
)
from bokeh.plotting import figure

from experiments.pages.figures import shortened
from highway_jax import plotting
from highway_jax.plotting import COLORS, FAINT, TEXT
from highway_jax.population import Result

POINTS = 100_000  # of all curves; of more, epochs are left out
LOADER = Path(__file__).with_name("interactive.js").read_text()
EXPONENT = str.maketrans("-0123456789", "\N{SUPERSCRIPT MINUS}⁰¹²³⁴⁵⁶⁷⁸⁹")
SHAPES = {"relu": "circle", "tanh": "triangle"}


def license_note() -> str:
    """Whose work the figures need."""
    return f"Bokeh {bokeh.__version__}, BSD-3-Clause"


@cache
def library() -> str:
    """Bokeh's JavaScript."""
    return (Path(bokeh.__file__).parent / "server/static/js/bokeh.min.js").read_text(encoding="utf-8")


def policy() -> str:
    """The page's content security policy: no scripts but these two, and nothing from elsewhere."""
    hashes = [base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in (LOADER, library())]
    scripts = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {scripts}"


def packed(text: str) -> str:
    """Text that the page holds: compressed, in letters."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def figures(results: Mapping[str, Result], name: str, prefix: str) -> tuple[str, list[str]]:
    """The figures of one search.

    Args:
      results: by kind of network.
      name: what the page calls the number that runs are ranked by.
      prefix: what the elements' ids begin with.

    Returns:
      JSON for `interactive.js`, and the ids of the elements that it fills, the curves' first.
    """
    document = Document()
    names = plotting.varied(result.hyperparameters for result in results.values())
    panels = _Panels(results, names, name)
    ids = []
    roots = {}
    drawn = [panels.curves(), *map(panels.against, names)]
    if len(results) > 1:
        panels.add_legend(drawn[0])
    for i, panel in enumerate(drawn):
        document.add_root(panel)
        ids.append(f"{prefix}-{i}")
        roots[panel.id] = ids[-1]
    items = [{"docid": prefix, "root_ids": list(roots), "roots": roots}]
    return json.dumps({"documents": {prefix: document.to_json(deferred=False)}, "items": items}), ids


class _Panels:
    """The panels of a search, which share their data: what is selected in one is selected in all."""

    def __init__(self, results: Mapping[str, Result], names: Sequence[str], name: str) -> None:
        self.results, self.name, self.wording = results, name, plotting.wording(name)
        self.mode = next(iter(results.values())).mode
        every = [result.curves[result.rank_by] for result in results.values()]
        finite = np.concatenate([curve[np.isfinite(curve)] for curve in every])
        positive = finite[finite > 0]
        wide = len(positive) > 0 and positive.max() > 3 * positive.min()
        self.log = self.mode == "min" and not (finite < 0).any() and wide
        self.low, self.high, self.cut = plotting.shown(every, self.mode, self.log)
        self.epochs = max(curve.shape[1] for curve in every)
        self.stride = math.ceil(sum(curve.size for curve in every) / POINTS)
        best = {kind: result.ranking.best for kind, result in results.items()}
        self.reached = plotting.reaches(best.values(), self.mode)
        self.values = {hp: _together([result.hyperparameters.get(hp) for result in results.values()]) for hp in names}
        self.across = {hp: plotting.across(np.concatenate(known)) for hp, (_, known) in self.values.items()}
        self.drawn: dict[str, list[GlyphRenderer]] = {kind: [] for kind in results}
        # What is selected belongs to a source: networks that share one have the same runs selected.
        columns = [self._columns(kind, result) for kind, result in results.items()]
        if paired(results):
            self.sources = dict.fromkeys(results, ColumnDataSource({k: v for part in columns for k, v in part.items()}))
        else:
            self.sources = {kind: ColumnDataSource(part) for kind, part in zip(results, columns, strict=True)}

    def _columns(self, kind: str, result: Result) -> dict[str, list[Any]]:
        ranking, curves = result.ranking, result.curves[result.rank_by]
        curves = np.where(curves == 0, self.low, curves) if self.log else curves  # at the edge, which is 0's place
        there = [np.flatnonzero(np.isfinite(curve)) for curve in curves]
        there = [np.union1d(epochs[:: self.stride], epochs[-1:]) for epochs in there]
        ended = [epochs[-1:] for epochs in there]
        columns: dict[str, list[Any]] = {
            "network": [kind] * result.num_runs,
            "run": result.runs.tolist(),
            "rank": ranking.ranks.tolist(),
            "best": [
                f"{value:.4g}{', then diverged' * bool(lost)}" if np.isfinite(value) else "never finite"
                for value, lost in zip(ranking.best, ranking.diverged, strict=True)
            ],
            "epoch": ranking.best_epoch.tolist(),
            "height": _rounded(self.reached.heights(ranking.best)),
            "shape": [
                "x" if lost else SHAPES.get(str(activation), "circle")
                for lost, activation in zip(
                    ranking.diverged, result.hyperparameters.get("activation", ranking.diverged), strict=True
                )
            ],
            "epochs": [(epochs + 1).tolist() for epochs in there],
            "curve": [_rounded(curve[epochs]) for curve, epochs in zip(curves, there, strict=True)],
            "end_epoch": [
                int(e[0]) + 1 if len(e) and lost else np.nan for e, lost in zip(ended, ranking.diverged, strict=True)
            ],
            "end": [_rounded(curve[e])[0] if len(e) else np.nan for curve, e in zip(curves, ended, strict=True)],
        }
        for i, hyperparameter in enumerate(self.values):
            values = result.hyperparameters.get(hyperparameter, [None] * result.num_runs)
            columns[f"text{i}"] = [_text(value) for value in values]
            places = self._places(hyperparameter, kind)
            columns[f"x{i}"] = [np.nan] * result.num_runs if places is None else _rounded(places)
        return {self._of(kind, name): column for name, column in columns.items()}

    def _of(self, kind: str, column: str) -> str:
        """The name of a network's column."""
        return f"{column}_{list(self.results).index(kind)}"

    def _places(self, hyperparameter: str, kind: str) -> np.ndarray | None:
        """Where a network's runs are on a hyperparameter's axis; None if it has no such hyperparameter."""
        has, known = self.values[hyperparameter]
        if not has[place := list(self.results).index(kind)]:
            return None
        begin = sum(map(len, known[: sum(has[:place])]))
        return self.across[hyperparameter].x[begin : begin + self.results[kind].num_runs]

    def curves(self) -> figure:
        """Every run's curve, the best one's bold."""
        label = f"{self.name.replace('_', ' ')}{self.wording.unit}{self.cut}"
        axis = "epoch" if self.stride == 1 else f"epoch (one of {self.stride} is drawn, and the last)"
        panel = self._panel(label, axis, self.log, (self.low, self.high))
        panel.add_tools("pan", "wheel_zoom", "reset")
        panel.update(toolbar_location="above", height=340)
        panel.x_range = Range1d(1, self.epochs) if self.epochs > 1 else Range1d(0.5, 1.5)
        for kind, source in self.sources.items():
            result, color = self.results[kind], _color(kind)
            line = {"xs": self._of(kind, "epochs"), "ys": self._of(kind, "curve"), "line_color": color}
            faint = min(0.5, max(0.04, 20 / result.num_runs))
            lines = panel.add_glyph(
                source,
                MultiLine(**line, line_alpha=faint),
                selection_glyph=MultiLine(**line, line_alpha=0.9, line_width=1.6),
                nonselection_glyph=MultiLine(**line, line_alpha=0.4 * faint),
                hover_glyph=MultiLine(**line, line_width=3),
            )
            cross = {"marker": "x", "size": 8, "line_width": 1.5, "line_color": color}
            cross |= {"x": self._of(kind, "end_epoch"), "y": self._of(kind, "end")}
            ends = panel.add_glyph(
                source, Scatter(**cross, line_alpha=0.6), nonselection_glyph=Scatter(**cross, line_alpha=0.1)
            )
            best = result.ranking.order[0]
            xs, ys = (source.data[self._of(kind, name)][best] for name in ("epochs", "curve"))
            bold = panel.line(xs, ys, line_color=color, line_width=3.5)
            self.drawn[kind] += [lines, ends, bold]
            panel.add_tools(self._hover(kind, lines))
        return panel

    def against(self, hyperparameter: str) -> figure:
        """One hyperparameter against the best number of every run; the lines join medians."""
        number, (_, options, log) = list(self.values).index(hyperparameter), self.across[hyperparameter]
        label = f"{self.wording.best}{self.wording.unit}"
        panel = self._panel(label, _label(hyperparameter), self.reached.log, self.reached.limits, log)
        panel.yaxis.ticker = FixedTicker(ticks=list(self.reached.ticks))
        panel.yaxis.major_label_overrides = {
            tick: PlainText(text=_unformatted(text)) for tick, text in self.reached.ticks.items()
        }
        if options:
            panel.xaxis.ticker = FixedTicker(ticks=list(range(len(options))))
            panel.xaxis.major_label_overrides = {
                i: PlainText(text=shortened(option, 24)) for i, option in enumerate(options)
            }
            panel.x_range.update(start=-0.6, end=len(options) - 0.4)
            if sum(map(len, options)) > 24:
                panel.xaxis.major_label_orientation = 0.7
        elif not log:
            panel.xaxis.ticker.desired_num_ticks = 4
        if self.reached.divider is not None:
            line = {"line_color": FAINT, "line_dash": "dashed", "line_width": 0.7}
            panel.add_layout(Span(location=self.reached.divider, dimension="width", **line))
        for kind, source in self.sources.items():
            places = self._places(hyperparameter, kind)
            if places is None:
                continue
            color = _color(kind)
            where = {"x": f"x{number}", "y": "height", "marker": "shape"}
            point: dict[str, Any] = {name: {"field": self._of(kind, column)} for name, column in where.items()}
            point |= {"size": 7, "line_width": 1.5, "line_color": color, "fill_color": color}
            usual, selected, other = (
                Scatter(**point, line_alpha=alpha, fill_alpha=0.7 * alpha) for alpha in (0.8, 1, 0.1)
            )
            points = panel.add_glyph(source, usual, selection_glyph=selected, nonselection_glyph=other)
            panel.add_tools(self._hover(kind, points))
            self.drawn[kind].append(points)
            ranking = self.results[kind].ranking
            first, heights = ranking.order[0], self.reached.heights(ranking.best)
            ring = {"size": 15, "fill_color": None, "line_color": color, "line_width": 2.5}
            self.drawn[kind].append(panel.scatter(_rounded(places[[first]]), _rounded(heights[[first]]), **ring))
            best = np.where(np.isfinite(ranking.best), heights, ranking.best)
            for xs, ys in plotting.medians(places, options, best):
                there = np.isfinite(ys)
                middle = panel.line(
                    _rounded(np.array(xs)[there]), _rounded(np.array(ys)[there]), color=color, line_width=2
                )
                self.drawn[kind].append(middle)
        return panel

    def add_legend(self, panel: figure) -> None:
        """Above the curves: a click on a network hides or shows it in all panels."""
        items = [LegendItem(label={"value": kind}, renderers=drawn) for kind, drawn in self.drawn.items()]
        looks = {"orientation": "horizontal", "click_policy": "hide", "border_line_color": None, "padding": 2}
        panel.add_layout(Legend(items=items, label_text_color=TEXT, **looks), "above")

    def _panel(
        self,
        ylabel: str,
        xlabel: str,
        log: bool,
        limits: tuple[float, float],
        across_log: bool = False,
    ) -> figure:
        select = BoxSelectTool()
        panel = figure(
            x_axis_type="log" if across_log else "linear",
            y_axis_type="log" if log else "linear",
            y_range=tuple(map(float, limits)),
            tools="tap",
            height=300,
            min_width=150,
            min_border_top=18,
            min_border_right=14,
            sizing_mode="stretch_width",
            toolbar_location=None,
        )
        panel.add_tools(select)
        panel.toolbar.update(active_drag=select, active_scroll=None, logo=None, autohide=True)
        panel.xaxis.axis_label, panel.yaxis.axis_label = PlainText(text=xlabel), PlainText(text=shortened(ylabel, 48))
        for axis in panel.axis:
            axis.update(
                axis_label_text_font_style="normal",
                axis_label_text_color=TEXT,
                axis_label_text_font_size="13px",
                major_label_text_color=TEXT,
                major_label_text_font_size="12px",
                axis_line_color=FAINT,
                major_tick_line_color=FAINT,
                minor_tick_line_color=None,
            )
        panel.grid.grid_line_alpha = 0.5
        panel.outline_line_color = None
        return panel

    def _hover(self, kind: str, renderer: GlyphRenderer) -> HoverTool:
        lines = {"network": "@network"} if len(self.results) > 1 else {}
        lines |= {"run": "@run, rank @rank", self.wording.best: "@best (epoch @epoch)"}
        shown = [*lines.items(), *((_label(hp), f"@text{i}") for i, hp in enumerate(self.values))]
        tooltips = [
            (label, re.sub(r"@(\w+)", lambda found: f"@{self._of(kind, found[1])}", value)) for label, value in shown
        ]
        return HoverTool(renderers=[renderer], tooltips=tooltips, limit=1, visible=False, line_policy="nearest")


def paired(results: Mapping[str, Result]) -> bool:
    """Whether runs of the same place have the same hyperparameters in all networks, where they have them."""
    first, *others = results.values()
    return all(
        np.array_equal(first.runs, other.runs)
        and all(
            np.array_equal(first.hyperparameters[name], values)
            for name, values in other.hyperparameters.items()
            if name in first.hyperparameters and not _unknown(values) and not _unknown(first.hyperparameters[name])
        )
        for other in others
    )


def _together(values: Sequence[np.ndarray | None]) -> tuple[list[bool], list[np.ndarray]]:
    """Which networks have a hyperparameter, and its values in those."""
    has = [column is not None and not _unknown(column) for column in values]
    return has, [column for column, there in zip(values, has, strict=True) if there and column is not None]


def _unknown(values: np.ndarray) -> bool:
    return values.dtype.kind == "f" and bool(np.isnan(values).all())


def _color(kind: str) -> str:
    return COLORS.get(kind, COLORS["highway"])


def _rounded(values: np.ndarray) -> list[Any]:
    """Numbers to five digits, which is more than a screen shows."""
    return [float(f"{value:.5g}") for value in values.tolist()]


def _text(value: Any) -> str:
    """A value as a label shows it."""
    if value is None or value != value:
        return "\N{EN DASH}"
    return f"{value:.4g}" if isinstance(value, float | np.floating) else shortened(str(value))


def _label(hyperparameter: str) -> str:
    return shortened(hyperparameter.replace("_", " "))


def _unformatted(tick: str) -> str:
    """A tick's label without Matplotlib's formulas: its exponents as Unicode has them."""
    return re.sub(r"\$10\^\{(.*)\}\$", lambda power: "10" + power[1].translate(EXPONENT), tick)

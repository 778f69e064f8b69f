"""What every figure has to be, whatever it shows."""

import itertools
from unittest import mock

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text


def texts(figure: Figure) -> list[Text]:
    """Those that are drawn; ticks outside of an axis are not."""
    drawn: dict[int, Text] = {}
    draw = Text.draw

    def record(self, renderer, *args, **options):
        if self.get_visible() and self.get_text().strip():
            drawn[id(self)] = self
        draw(self, renderer, *args, **options)

    with mock.patch.object(Text, "draw", record):
        FigureCanvasAgg(figure).draw()
    return list(drawn.values())


def check_readable(figure: Figure) -> None:
    """Text lies within the figure, none upon another, and is legible where a page is as wide as a README's column."""
    pixels = 830 / figure.get_figwidth() / 72  # of a point, in a column of 830 pixels
    shown = [(text, Text.get_window_extent(text)) for text in texts(figure)]
    assert shown
    for text, box in shown:
        assert text.get_fontsize() * pixels > 8.5, text
        assert figure.bbox.x0 - 1 <= box.x0 and box.x1 <= figure.bbox.x1 + 1, text
        assert figure.bbox.y0 - 1 <= box.y0 and box.y1 <= figure.bbox.y1 + 1, text
    for (a, one), (b, other) in itertools.combinations(shown, 2):
        width = min(one.x1, other.x1) - max(one.x0, other.x0)
        height = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert width <= 2 or height <= 2, (a, b)

"""Descriptions of convolutional networks as a list of stages, as in the tables of a paper.

```python
("conv 32 5x5 valid", "2 highway 3x3", "maxpool 3x3 /2", "dropout 0.3", "dense 100")
("3 maxout 16 3x3", "maxpool 2x2", "maxout 500 of 5")
```

A word names the kind of stage. A number before it is the number of such layers in sequence. A number after it is the
number of features of a layer, or the rate of a dropout. KxK is a window, and /S is a stride.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any

KINDS = ("highway", "plain", "residual")  # what the highway layers of a convolutional network may be
Window = tuple[int, int]
LARGEST = 10**5  # the largest number in a stage; anything larger is taken as a typing error


@dataclasses.dataclass(frozen=True)
class Conv:
    """`[COUNT] conv FEATURES KxK [/STRIDE] [valid]`: plain convolutions, zero-padded unless `valid`."""

    features: int
    window: Window
    stride: int = 1
    valid: bool = False
    count: int = 1

    def __str__(self) -> str:
        return _text(self.count, "conv", self.features, self.window, self.stride, self.valid)


@dataclasses.dataclass(frozen=True)
class Highway:
    """`[COUNT] highway [FEATURES] KxK [/STRIDE]`: highway layers, or plain layers of this size in a plain network.

    With features or a stride, the first layer changes the size of the representation (see `HighwayConv`).
    """

    window: Window
    features: int | None = None
    stride: int = 1
    count: int = 1

    def __str__(self) -> str:
        return _text(self.count, "highway", self.features, self.window, self.stride)


@dataclasses.dataclass(frozen=True)
class MaxPool:
    """`maxpool KxK [/STRIDE]`: max pooling; the output size is rounded up, and the stride defaults to the window."""

    window: Window
    stride: int | None = None

    def __str__(self) -> str:
        return _text(1, "maxpool", None, self.window, self.stride)


@dataclasses.dataclass(frozen=True)
class AvgPool:
    """`avgpool KxK [/STRIDE]`: average pooling with sizes as in `maxpool`; global if the window is the whole image."""

    window: Window
    stride: int | None = None

    def __str__(self) -> str:
        return _text(1, "avgpool", None, self.window, self.stride)


@dataclasses.dataclass(frozen=True)
class Dropout:
    """`dropout RATE`: in training, each number is set to zero with this probability."""

    rate: float

    def __str__(self) -> str:
        return f"dropout {self.rate!r}"


@dataclasses.dataclass(frozen=True)
class Dense:
    """`[COUNT] dense FEATURES`: plain fully connected layers, which flatten images."""

    features: int
    count: int = 1

    def __str__(self) -> str:
        return _text(self.count, "dense", self.features)


@dataclasses.dataclass(frozen=True)
class Maxout:
    """`[COUNT] maxout FEATURES [of PIECES] [KxK [pad P]]`: maxout layers with PIECES (by default 2) maps per unit.

    With a window, they are convolutions, zero-padded by P on every side or, by default, so that the size is kept.
    Without a window, they are fully connected.
    """

    features: int
    window: Window | None = None
    pieces: int = 2
    pad: int | None = None
    count: int = 1

    def __str__(self) -> str:
        pieces = f" of {self.pieces}" if self.pieces != 2 else ""
        window = " {}x{}".format(*self.window) if self.window else ""
        pad = f" pad {self.pad}" if self.pad is not None else ""
        return _text(self.count, "maxout", self.features) + pieces + window + pad


Stage = Conv | Highway | MaxPool | AvgPool | Dropout | Dense | Maxout

_COUNT, _WINDOW, _STRIDE = r"((?P<count>\d+) )?", r" (?P<window>\d+x\d+)", r"( /(?P<stride>\d+))?"
# The syntax of each stage, for error messages and as a regular expression.
_FORMS: dict[Callable[..., Any], tuple[str, str]] = {
    Conv: (
        "[COUNT] conv FEATURES KxK [/STRIDE] [valid]",
        rf"{_COUNT}conv (?P<features>\d+){_WINDOW}{_STRIDE}(?P<valid> valid)?",
    ),
    Highway: ("[COUNT] highway [FEATURES] KxK [/STRIDE]", rf"{_COUNT}highway( (?P<features>\d+))?{_WINDOW}{_STRIDE}"),
    MaxPool: ("maxpool KxK [/STRIDE]", rf"maxpool{_WINDOW}{_STRIDE}"),
    AvgPool: ("avgpool KxK [/STRIDE]", rf"avgpool{_WINDOW}{_STRIDE}"),
    Dropout: ("dropout RATE", r"dropout (?P<rate>\d*\.?\d+(e-?\d+)?)"),
    Dense: ("[COUNT] dense FEATURES", rf"{_COUNT}dense (?P<features>\d+)"),
    Maxout: (
        "[COUNT] maxout FEATURES [of PIECES] [KxK [pad P]]",
        rf"{_COUNT}maxout (?P<features>\d+)( of (?P<pieces>\d+))?({_WINDOW}( pad (?P<pad>\d+))?)?",
    ),
}


def parse(text: str) -> Stage:
    """Parse the text of a stage. `str` of the result is the text in normal form.

    Args:
      text: a stage such as "2 highway 3x3"; case and additional spaces do not matter.

    Returns:
      The stage.

    Raises:
      ValueError: if the text is not a stage; the message says what form it should have.

    Example:
      ```python
      parse("2 highway 3x3")  # Highway(window=(3, 3), features=None, stride=1, count=2)
      ```
    """
    kinds = {kind.__name__.lower(): kind for kind in _FORMS}
    words = text.lower().split() if isinstance(text, str) else []
    named = [kinds[word] for word in words if word in kinds]
    if len(named) != 1:
        raise ValueError(f"stage {text!r} must be one of: {', '.join(form for form, _ in _FORMS.values())}")
    (kind,) = named
    form, pattern = _FORMS[kind]
    match = re.fullmatch(pattern, " ".join(words), re.ASCII)
    if not match:
        raise ValueError(f"stage {text!r} must have the form: {form}")
    given = {name: _READERS.get(name, int)(value) for name, value in match.groupdict().items() if value is not None}
    for name, value in given.items():
        if name == "rate":
            if not value < 1:
                raise ValueError(f"stage {text!r} has the rate {value}; it must be at least 0 and below 1")
            continue
        least = 0 if name == "pad" else 1
        if not all(least <= number <= LARGEST for number in (value if isinstance(value, tuple) else (value,))):
            raise ValueError(
                f"stage {text!r} has the {name} {match[name]}; it must be at least {least} and at most {LARGEST}"
            )
    if kind in (MaxPool, AvgPool) and given.get("stride", 1) > min(given["window"]):
        raise ValueError(f"stage {text!r} has the stride {given['stride']}; it must be at most its window")
    return kind(**given)


def depth(stages: Iterable[str | Stage]) -> int:
    """The number of layers with weights as the paper counts them, including the output layer."""
    parsed = (stage if isinstance(stage, Stage) else parse(stage) for stage in stages)
    return 1 + sum(stage.count for stage in parsed if isinstance(stage, Conv | Highway | Dense | Maxout))


_READERS: dict[str, Callable[[str], Any]] = {
    "window": lambda text: tuple(map(int, text.split("x"))),
    "valid": lambda text: True,
    "rate": float,
}


def _text(
    count: int, word: str, features: int | None, window: Window | None = None, stride: int | None = None, valid=False
) -> str:
    """Write a stage in the form that `parse` reads, without default values."""
    layer = word in ("conv", "highway", "dense")
    words = [
        f"{count}" if count != 1 else "",
        word,
        f"{features}" if features is not None else "",
        "{}x{}".format(*window) if window else "",
        f"/{stride}" if stride is not None and not (layer and stride == 1) else "",
        "valid" if valid else "",
    ]
    return " ".join(filter(None, words))

"""The language in which a convolutional network is described: a stage a line, as in a paper's table.

    ("conv 32 5x5 valid", "2 highway 3x3", "maxpool 3x3 /2", "dropout 0.3", "dense 100")
    ("3 maxout 16 3x3", "maxpool 2x2", "maxout 500 of 5")

A word names the stage. KxK is a window, /S a stride, a number after the word the size of the output
(features of a layer, the rate of a dropout), a number before it says how many such layers follow one another.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any

KINDS = ("highway", "plain", "residual")  # what the highway layers of a convolutional network may be
Window = tuple[int, int]
LARGEST = 10**5  # of any number in a stage; a slip of the keyboard beyond


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
    """`[COUNT] highway [FEATURES] KxK [/STRIDE]`: highway layers; plain ones of that size in a plain network.

    With features or a stride, the first of them changes the size of the representation (see `HighwayConv`).
    """

    window: Window
    features: int | None = None
    stride: int = 1
    count: int = 1

    def __str__(self) -> str:
        return _text(self.count, "highway", self.features, self.window, self.stride)


@dataclasses.dataclass(frozen=True)
class MaxPool:
    """`maxpool KxK [/STRIDE]`: the output's size is rounded up; the stride is the window unless given."""

    window: Window
    stride: int | None = None

    def __str__(self) -> str:
        return _text(1, "maxpool", None, self.window, self.stride)


@dataclasses.dataclass(frozen=True)
class AvgPool:
    """`avgpool KxK [/STRIDE]`: as `maxpool`; over the whole image it is a global average pooling."""

    window: Window
    stride: int | None = None

    def __str__(self) -> str:
        return _text(1, "avgpool", None, self.window, self.stride)


@dataclasses.dataclass(frozen=True)
class Dropout:
    """`dropout RATE`: each number is zero with this probability, while training."""

    rate: float

    def __str__(self) -> str:
        return f"dropout {self.rate!r}"


@dataclasses.dataclass(frozen=True)
class Dense:
    """`[COUNT] dense FEATURES`: plain fully connected layers; images are flattened."""

    features: int
    count: int = 1

    def __str__(self) -> str:
        return _text(self.count, "dense", self.features)


@dataclasses.dataclass(frozen=True)
class Maxout:
    """`[COUNT] maxout FEATURES [of PIECES] [KxK [pad P]]`: layers whose units are the largest of PIECES affine maps, 2
    unless given. Convolutions with a window, zero-padded by P on every side, else so that the size is kept; without
    one fully connected.
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
# Of each stage the form that it must have, as one reads it and as a regular expression.
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
    """Read a stage; `str` of a stage is its text again.

    Raises:
      ValueError: in one line that names the text and the form that it should have.
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
    """Layers with weights, as the paper counts them: the stages' and the output layer."""
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
    """Write a stage as `parse` reads it, leaving out what is usual."""
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

"""Facts read from a compiled program: the memory that it needs and the collective operations between its devices."""

import functools
import re
from typing import Any, NamedTuple

import jax

# Patterns in the text of an XLA program: the first line of a computation, a collective operation, and the computations
# that an instruction calls.
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
COLLECTIVE = re.compile(
    r" (all-gather|all-reduce|all-to-all|ragged-all-to-all|reduce-scatter|collective-\w+)(?:-start)?\("
)
CALLED = re.compile(
    r"(?:calls|to_apply|body|branch_computations|true_computation|false_computation|called_computations)="
    r"(\{[^}]*\}|%?[\w.-]+)"
)


class Collective(NamedTuple):
    """A collective operation, at its place in a program.

    Attributes:
      kind: its name in XLA, such as "all-reduce".
      loops: the number of iterations of each loop around it, the outermost first; None where it is known only at run
        time.
    """

    kind: str
    loops: tuple[int | None, ...]


def collectives(program: str) -> list[Collective]:
    """List the collective operations of a compiled program, including those of every branch of a `lax.cond`.

    Args:
      program: its text, from `compiled.as_text()`. Loops are assumed to count from 0, as those of `lax.scan` do.
    """
    lines, entry = computations(program)

    @functools.cache
    def within(name: str) -> tuple[Collective, ...]:
        found = []
        for line in lines[name]:
            if sends := COLLECTIVE.search(line):
                found.append(Collective(sends[1], ()))
            if re.search(r" async-(update|done)\(", line):
                continue  # counted where it was started
            inner = [
                collective
                for names in CALLED.findall(line)
                for called in re.findall(r"[\w.-]+", names)
                for collective in within(called)
            ]
            if inner and " while(" in line:
                around = trips(line, lines)
                inner = [Collective(kind, (around, *loops)) for kind, loops in inner]
            found += inner
        return tuple(found)

    return list(within(entry))


def computations(program: str) -> tuple[dict[str, list[str]], str]:
    """Split a program's text into the lines of each computation; also return the name of the entry computation."""
    found: dict[str, list[str]] = {}
    lines, entry = [], ""
    for line in program.splitlines():
        if first := COMPUTATION.match(line):
            lines = found[first[2]] = []
            entry = first[2] if first[1] else entry
        else:
            lines.append(line)
    return found, entry


def trips(loop: str, lines: dict[str, list[str]]) -> int | None:
    """The number of iterations of a loop, from the compiler or from the constant that its condition compares with.

    Args:
      loop: the line of the loop.
      lines: the lines of all computations, from `computations`.

    Returns:
      The number, or None if the program's text does not say.
    """
    if known := re.search(r"known_trip_count\D+(\d+)", loop):
        return int(known[1])
    (condition,) = re.findall(r"condition=%?([\w.-]+)", loop)
    text = "\n".join(lines[condition])
    compared = re.search(r"ROOT .* compare\(.*?%?([\w.-]+)\), direction=LT", text)
    constant = compared and re.search(rf"%?{re.escape(compared[1])} = \w+\[\]\S* constant\((\d+)\)", text)
    return int(constant[1]) if constant else None


def memory(program: jax.stages.Compiled) -> int:
    """Bytes of a device's memory while a program runs: its arguments, results and temporaries."""
    usage = program.memory_analysis()
    assert usage is not None
    # A result that reuses the memory of a donated argument counts once.
    results = usage.output_size_in_bytes - usage.alias_size_in_bytes
    return usage.argument_size_in_bytes + results + usage.temp_size_in_bytes


def laid_out(tree: Any) -> int:
    """Bytes of a tree on one of its devices, including the padding of the device's layout, such as a TPU's tiles.

    Args:
      tree: a tree of `jax.ShapeDtypeStruct` with shardings.
    """
    usage = jax.jit(lambda tree: None, keep_unused=True).lower(tree).compile().memory_analysis()
    assert usage is not None
    return usage.argument_size_in_bytes

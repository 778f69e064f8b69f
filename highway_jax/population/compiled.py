"""What a compiled program says of itself: the memory that it takes, and what its devices send each other."""

import functools
import re
from typing import Any, NamedTuple

import jax

# In XLA's text of a program: a computation's first line, an instruction that sends, the computations that one calls.
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
COLLECTIVE = re.compile(
    r" (all-gather|all-reduce|all-to-all|ragged-all-to-all|reduce-scatter|collective-\w+)(?:-start)?\("
)
CALLED = re.compile(
    r"(?:calls|to_apply|body|branch_computations|true_computation|false_computation|called_computations)="
    r"(\{[^}]*\}|%?[\w.-]+)"
)


class Collective(NamedTuple):
    """An operation by which devices send each other something, at its place in a program.

    Attributes:
      kind: what XLA calls it, such as "all-reduce".
      loops: how often each loop around it runs, the outermost first; None where that is decided as the program runs.
    """

    kind: str
    loops: tuple[int | None, ...]


def collectives(program: str) -> list[Collective]:
    """Those of a compiled program; of alternatives such as `lax.cond`'s, those of all.

    Args:
      program: its text, from `compiled.as_text()`. Loops are taken to count from 0, as those of `lax.scan` do.
    """
    lines, entry = computations(program)

    @functools.cache
    def within(name: str) -> tuple[Collective, ...]:
        found = []
        for line in lines[name]:
            if sends := COLLECTIVE.search(line):
                found.append(Collective(sends[1], ()))
            if re.search(r" async-(update|done)\(", line):
                continue  # what was started is counted there
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
    """The lines of a program's text by computation, and the name of the first one that runs."""
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
    """How often a loop runs: as the compiler says, or up to the constant that its condition compares with.

    Args:
      loop: its line.
      lines: from `computations`.
    """
    if known := re.search(r"known_trip_count\D+(\d+)", loop):
        return int(known[1])
    (condition,) = re.findall(r"condition=%?([\w.-]+)", loop)
    text = "\n".join(lines[condition])
    compared = re.search(r"ROOT .* compare\(.*?%?([\w.-]+)\), direction=LT", text)
    constant = compared and re.search(rf"%?{re.escape(compared[1])} = \w+\[\]\S* constant\((\d+)\)", text)
    return int(constant[1]) if constant else None


def memory(program: jax.stages.Compiled) -> int:
    """Bytes of a device's memory while a program runs: its arguments, its results and what is between."""
    usage = program.memory_analysis()
    assert usage is not None
    # Results that take the place of a donated argument count once.
    results = usage.output_size_in_bytes - usage.alias_size_in_bytes
    return usage.argument_size_in_bytes + results + usage.temp_size_in_bytes


def laid_out(tree: Any) -> int:
    """Bytes of a tree on one of its devices, whose layout may pad arrays, as a TPU's tiles do.

    Args:
      tree: of `jax.ShapeDtypeStruct` with shardings.
    """
    usage = jax.jit(lambda tree: None, keep_unused=True).lower(tree).compile().memory_analysis()
    assert usage is not None
    return usage.argument_size_in_bytes

"""Count the operations and bytes of a compiled program, with every iteration of its loops.

XLA's own `cost_analysis` counts the body of a loop once, and library calls (such as cuBLAS products) not at all.
"""

import math
import re

import jax

from highway_jax.population.compiled import computations, trips

CALLED = re.compile(r" (while|call)\(.*?(?:body|to_apply)=%?([\w.\-]+)")
INSTRUCTION = re.compile(r"^ +(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\(([^)]*)\)", re.MULTILINE)
# A fusion on its own stream. XLA's analysis would count every operand of it in full.
BEGUN = re.compile(r"= \(\([^()]*\), (.*?), u32\[\][^()]*\) fusion-start\(")
SHAPE = re.compile(r"\b([a-z]+)(\d+)\w*\[([\d,]*)\]")


def executed(compiled: jax.stages.Compiled, unknown_trips: int = 1) -> dict[str, float]:
    """Floating-point operations and bytes of one call of a program.

    Args:
      compiled: the program.
      unknown_trips: the number of iterations of loops whose number the compiler does not know.

    Returns:
      `flops`, without those of library calls; `bytes`, which kernels and library calls read and write; and
      `library_calls`, their number.
    """
    text = BEGUN.sub(r"= \1 fusion(", compiled.as_text()).replace(" fusion-done(", " bitcast(")
    lines, entry = computations(text)

    def total(name: str) -> dict[str, float]:
        counted = _cost(text, name)
        for moved in _library_calls("\n".join(lines[name])):
            counted["bytes"] += moved
            counted["library_calls"] += 1
        for line in lines[name]:
            if not (called := CALLED.search(line)):
                continue
            times = 1 if called[1] == "call" else trips(line, lines) or unknown_trips
            body, once = total(called[2]), _cost(text, called[2])
            for key in counted:
                counted[key] += times * body[key] - once[key]
        return counted

    return total(entry)


def _cost(text: str, entry: str) -> dict[str, float]:
    """XLA's analysis of one of a module's computations."""
    from jaxlib import _hlo, _jax  # private modules of jaxlib

    header, _, rest = text.partition("\n")
    rest = re.sub(rf"^%?{re.escape(entry)} ", f"ENTRY %{entry} ", rest.replace("\nENTRY ", "\n"), flags=re.MULTILINE)
    module = _hlo.hlo_module_from_text(f"{header.split(',')[0]}\n{rest}")
    found = _jax.hlo_module_cost_analysis(jax.devices()[0].client, module)
    return {"flops": found.get("flops", 0.0), "bytes": found.get("bytes accessed", 0.0), "library_calls": 0}


def _library_calls(computation: str) -> list[int]:
    """The bytes of operands and results of each library call, without its working memory."""
    instructions = list(INSTRUCTION.finditer(computation))
    sizes = {found[1]: _size(found[2]) for found in instructions}
    return [
        sizes[found[1]] + sum(sizes.get(operand.split("%")[-1].strip(), 0) for operand in found[4].split(","))
        for found in instructions
        if found[3] == "custom-call"
    ]


def _size(shape: str) -> int:
    """The bytes of a shape or of a tuple of shapes, except for 8-bit arrays, which are working memory."""
    arrays = [(int(bits), sizes) for _, bits, sizes in SHAPE.findall(shape)]
    wide = [(bits, sizes) for bits, sizes in arrays if bits > 8]
    return sum(bits // 8 * math.prod(int(size) for size in sizes.split(",") if size) for bits, sizes in wide)

"""What a compiled program computes and moves, its loops counted as often as they run.

XLA's own `cost_analysis` counts the body of a loop once, and a library's calls (such as cuBLAS's products) not at all.
"""

import math
import re

import jax

from highway_jax.population.compiled import computations, trips

CALLED = re.compile(r" (while|call)\(.*?(?:body|to_apply)=%?([\w.\-]+)")
INSTRUCTION = re.compile(r"^ +(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\(([^)]*)\)", re.MULTILINE)
# A fusion on a stream of its own, of which XLA's analysis counts every operand whole.
BEGUN = re.compile(r"= \(\([^()]*\), (.*?), u32\[\][^()]*\) fusion-start\(")
SHAPE = re.compile(r"\b([a-z]+)(\d+)\w*\[([\d,]*)\]")


def executed(compiled: jax.stages.Compiled, unknown_trips: int = 1) -> dict[str, float]:
    """Floating-point operations and bytes of one call of a program.

    Args:
      compiled: the program.
      unknown_trips: how often a loop runs of which the compiler does not know it.

    Returns:
      `flops`, without those of library calls; `bytes` that kernels and library calls read and write; and the number
      of `library_calls`.
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
    """XLA's analysis of a program that is one of a module's computations."""
    from jaxlib import _hlo, _jax  # jaxlib promises neither

    header, _, rest = text.partition("\n")
    rest = re.sub(rf"^%?{re.escape(entry)} ", f"ENTRY %{entry} ", rest.replace("\nENTRY ", "\n"), flags=re.MULTILINE)
    module = _hlo.hlo_module_from_text(f"{header.split(',')[0]}\n{rest}")
    found = _jax.hlo_module_cost_analysis(jax.devices()[0].client, module)
    return {"flops": found.get("flops", 0.0), "bytes": found.get("bytes accessed", 0.0), "library_calls": 0}


def _library_calls(computation: str) -> list[int]:
    """Bytes of the operands and the result of each library call, without its working memory."""
    instructions = list(INSTRUCTION.finditer(computation))
    sizes = {found[1]: _size(found[2]) for found in instructions}
    return [
        sizes[found[1]] + sum(sizes.get(operand.split("%")[-1].strip(), 0) for operand in found[4].split(","))
        for found in instructions
        if found[3] == "custom-call"
    ]


def _size(shape: str) -> int:
    """Bytes of a shape, or of all of a tuple's but bytes themselves, which are working memory."""
    arrays = [(int(bits), sizes) for _, bits, sizes in SHAPE.findall(shape)]
    wide = [(bits, sizes) for bits, sizes in arrays if bits > 8]
    return sum(bits // 8 * math.prod(int(size) for size in sizes.split(",") if size) for bits, sizes in wide)

"""The files of a network in C."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from rpg_ms.deploy.c.plan import Plan
from rpg_ms.deploy.c.tables import BYTES, Program, program, shape_name

SOURCE = Path(__file__).parent / "source"
INSIDE = 10**6  # bytes of weights up to which they are part of net.c

HEADER = """/* A sparse network; README.md says how to use it. */
#ifndef NET_H
#define NET_H

#define NET_INPUT_SIZE {input}
#define NET_OUTPUT_SIZE {output}
#define NET_ARENA_BYTES {arena}
#define NET_WEIGHTS_BYTES {weights}

#ifdef __cplusplus
extern "C" {{
#endif

void net_run(const void *weights, const float *input, float *output, void *arena);

#ifdef __cplusplus
}}
#endif

#endif
"""

RUN = """
void net_run(const void *weights, const float *input, float *output, void *arena) {{
    const net_word *w = {weights};
    float *a = arena;
{calls}
}}
"""


def write_folder(plan: Plan, input_size: int, value_type: str, folder: Path) -> dict[str, Any]:
    """Write net.c, net.h, net.bin where the weights are large, main.c, Makefile and README.md.

    Args:
        plan: what is computed.
        input_size: floats of one input.
        value_type: what packed weights are kept as.
        folder: a new folder.

    Returns:
        `executed_multiply_adds`, `weights_bytes` and `arena_bytes`.
    """
    written = program(plan, value_type)
    words = written.words
    size, arena = 4 * len(words), 4 * plan.arena
    inside = size <= INSIDE
    folder.mkdir()
    for name in ("main.c", "Makefile", "README.md"):
        shutil.copyfile(SOURCE / name, folder / name)
    (folder / "net.h").write_text(
        HEADER.format(
            input=input_size,
            output=plan.output.planes.size * plan.output.space[0] * plan.output.space[1],
            arena=max(arena, 4),
            weights=0 if inside else size,
        )
    )
    with open(folder / "net.c", "w", encoding="utf-8") as file:
        file.write(_source(plan, written, value_type, words if inside else None))
    if not inside:
        words.tofile(folder / "net.bin")
    return {"executed_multiply_adds": plan.macs, "weights_bytes": size, "arena_bytes": max(arena, 4)}


def _source(plan: Plan, written: Program, value_type: str, words: np.ndarray) -> str:
    """The text of net.c; the weights are in it unless `words` is None."""
    bits = f"#define NET_BITS {8 * BYTES[value_type]}\n\n" if value_type in BYTES else ""
    shapes = [plan.shapes[space] for space in sorted(written.spaces)]
    parts = [
        '#include "net.h"\n\n',
        bits,
        (SOURCE / "kernels.c").read_text(encoding="utf-8"),
        "\n/* height, width, stride, plane, lead */\n",
        *(
            f"static const net_shape {shape_name(s.space)} = "
            f"{{{s.space[0]}, {s.space[1]}, {s.stride}, {s.plane}, {s.lead}}};\n"
            for s in shapes
        ),
    ]
    if words is not None:
        numbers = words.view(np.int32).tolist()
        lines = (", ".join(f"{{{n}}}" for n in numbers[i : i + 10]) for i in range(0, len(numbers), 10))
        parts += ["\nstatic const net_word net_weights[] = {\n", ",\n".join(lines), "};\n"]
    calls = [*(["(void)weights;"] if words is not None else []), *written.calls]
    parts.append(
        RUN.format(
            weights="weights" if words is None else "net_weights", calls="\n".join(f"    {call}" for call in calls)
        )
    )
    return "".join(parts)

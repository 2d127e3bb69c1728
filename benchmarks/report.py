"""What every benchmark prints around its numbers: the machine's line, a Markdown table, JSON where asked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mnif_nerf.machine import describe


def machine(seed: int) -> dict[str, Any]:
    """Machine, versions, seed and the load before anything was started."""
    from mnif_nerf.fields import kernel

    load = [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
    return {**describe(), "kernel": kernel.available(), "seed": seed, "load": load}


def machine_line(info: dict[str, Any]) -> str:
    """`machine` in one line."""
    accelerator = "" if info["device"] == "cpu" else f" + {info['device']}"
    load = "unknown" if info["load"] is None else " ".join(f"{value:.2f}" for value in info["load"])
    versions = ", ".join(f"{name} {info[name]}" for name in ("mnif_nerf", "torch", "numpy") if info[name])
    return (
        f"Machine: {info['processor']}, {info['cores']} cores{accelerator}; "
        f"Python {info['python']}, {versions}; compiled kernel "
        f"{'on' if info['kernel'] else 'off'}; seed {info['seed']}; load at start {load}."
    )


def number(value: object) -> str:
    """Three significant digits, thousands apart; text as it is; "-" for None."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if value != value or abs(value) == float("inf"):
        return str(value)
    size = abs(value)
    digits = 0 if size >= 100 or isinstance(value, int) else 1 if size >= 10 else 2 if size >= 0.1 else 4
    return f"{value:,.{digits}f}"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    lines += ["| " + " | ".join(number(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def finish(title: str, parts: Sequence[str], info: dict[str, Any], results: Any, output: Path | None) -> None:
    """Print title, parts and the machine's line; write `results` where asked."""
    print(f"\n### {title}\n\n" + "\n\n".join(parts) + f"\n\n{machine_line(info)}")
    if output is not None:
        from mnif_nerf.files import write_json

        write_json(output, {"benchmark": title, "machine": info, "results": results})
        print(f"\nWrote {output}.")

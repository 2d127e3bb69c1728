"""The nearest of many pictures, pixel by pixel, on a device."""

from __future__ import annotations

import numpy as np
import torch

from mnif_nerf.machine import chunk_memory

_CHANNELS_AT_A_TIME = 1 << 14
_BYTE = 256.0


def nearest_pictures(
    rows: np.ndarray, columns: np.ndarray, device: torch.device, memory: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest column of every row by root-mean-square difference.

    Squares come from products: those of bytes are whole numbers, which float64 holds exactly, so nothing cancels.

    Args:
        rows: uint8 `[R, P]`.
        columns: uint8 `[C, P]`.
        device: where they are compared.
        memory: bytes that a chunk may take beside all columns; by default those of `chunk_memory`.

    Returns:
        index int64 `[R]` (the lowest of equally near ones) and distance float64 `[R]` in [0, 1].
    """
    memory = memory or chunk_memory(device)
    known = torch.from_numpy(np.ascontiguousarray(columns)).to(device)
    width = min(rows.shape[1], _CHANNELS_AT_A_TIME)
    together = max(1, memory // (16 * (len(known) + width)))
    some = max(1, memory // (16 * width))
    found = []
    for first in range(0, len(rows), together):
        part = torch.from_numpy(np.ascontiguousarray(rows[first : first + together])).to(device)
        squared = torch.empty(len(part), len(known), dtype=torch.float64, device=device)
        for begin in range(0, len(known), some):
            squared[:, begin : begin + some] = _squared(part, known[begin : begin + some], width)
        least = squared.amin(dim=1, keepdim=True)
        place = torch.arange(len(known), device=device)
        index = torch.where(squared == least, place, len(known)).amin(dim=1)
        found.append((index, least[:, 0]))
    index, least = (torch.cat(part).cpu().numpy() for part in zip(*found))
    return index, np.sqrt(least) / ((_BYTE - 1) * rows.shape[1] ** 0.5)


def _squared(rows: torch.Tensor, columns: torch.Tensor, width: int) -> torch.Tensor:
    """Sums of squared differences `[R, C]`, some channels at a time."""
    total = torch.zeros(len(rows), len(columns), dtype=torch.float64, device=rows.device)
    for begin in range(0, rows.shape[1], width):
        left, right = (side[:, begin : begin + width].double() for side in (rows, columns))
        total.addmm_(left, right.T, alpha=-2.0)
        total += left.square().sum(dim=1)[:, None] + right.square().sum(dim=1)
    return total

"""Numbers in the text of a web page: base64 of little-endian halves or floats."""

from __future__ import annotations

import base64
from typing import Any, Literal

import numpy as np
from torch import Tensor

from mnif_nerf.errors import MNIFError

Precision = Literal["float16", "float32"]


def encoded(values: np.ndarray, precision: Precision, what: str) -> str:
    """Base64 of numbers.

    Args:
        values: any shape.
        precision: of what is stored.
        what: whose numbers they are, for messages.

    Raises:
        MNIFError: NaNs, or numbers that the precision cannot hold.
    """
    if not np.isfinite(values).all():
        raise MNIFError(f"{what}: the network has NaN or infinite numbers; train the model again.")
    with np.errstate(over="ignore"):
        stored = values.astype("<f2" if precision == "float16" else "<f4")
    if not np.isfinite(stored).all():
        raise MNIFError(f"{what}: its weights are too large for float16; add `precision` float32.")
    return base64_of(stored.tobytes())


def packed(tensor: Tensor, precision: Precision, what: str) -> dict[str, Any]:
    """A tensor, JSON-ready: shape, precision, base64, and as float16 the factor that brings its largest number to 1.

    Raises:
        MNIFError: NaNs.
    """
    values = tensor.detach().cpu().double().numpy()
    largest = float(np.abs(values).max()) if precision == "float16" and values.size else 1.0
    factor = largest if 0 < largest < np.inf else 1.0
    data = encoded(values / factor, precision, what)
    return {"shape": list(tensor.shape), "precision": precision, "factor": factor, "data": data}


def base64_of(content: bytes) -> str:
    """Base64 as text."""
    return base64.b64encode(content).decode("ascii")


def base64_size(content: int) -> int:
    """Characters that so many bytes take."""
    return -(-content // 3) * 4

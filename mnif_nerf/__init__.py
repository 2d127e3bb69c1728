"""Generative neural fields by mixtures of neural implicit functions (mNIF, NeurIPS 2023, arXiv 2310.19464)."""

from __future__ import annotations

import importlib
import os
from typing import Any

# Read by OpenMP when torch is loaded. Threads that wait for each other by spinning, as is usual, make a machine that
# does anything else three to eight times slower (docs/benchmarks.md); ones that sleep cost an idle machine nothing.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

# Names resolve on first use, so that `import mnif_nerf` and every --help stay light.
_EXPORTS = {
    "MNIFPipeline": "mnif_nerf.pipelines.generation",
    "NeuralObject": "mnif_nerf.objects.base",
    "NeuralRadiance": "mnif_nerf.objects.radiance",
    "NeuralShape": "mnif_nerf.objects.shape",
    "NeuralSurface": "mnif_nerf.objects.surface",
    "NeuralImage": "mnif_nerf.objects.image",
    "NeuralSignal": "mnif_nerf.objects.signal",
    "MixtureField": "mnif_nerf.fields.modulations.mixture",
    "build_field": "mnif_nerf.fields.modulations",
    "FieldSpec": "mnif_nerf.fields.spec",
    "CompactField": "mnif_nerf.fields.compact",
    "LatentPrior": "mnif_nerf.priors.prior",
    "MNIFError": "mnif_nerf.errors",
    "make": "mnif_nerf.cli.make",
}
__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'mnif_nerf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])

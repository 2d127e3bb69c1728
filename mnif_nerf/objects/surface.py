"""Objects of models of signed distance and colour."""

from __future__ import annotations

from typing import ClassVar

from mnif_nerf.objects.shape import NeuralShape


class NeuralSurface(NeuralShape):
    """A coloured solid: the object of a model of signed distance and colour."""

    modality: ClassVar[str] = "sdf"

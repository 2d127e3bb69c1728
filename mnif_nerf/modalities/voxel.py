"""The modality "voxel"."""

from __future__ import annotations

from mnif_nerf.modalities.base import Modality
from mnif_nerf.objects.solid import NeuralShape


class Voxel(Modality):
    """See the module."""

    name, noun, nouns = "voxel", "shape", "shapes"
    heads = ("signed", "logit")
    object_class = NeuralShape

"""The modality "radiance"."""

from __future__ import annotations

from mnif_nerf.modalities.base import Modality
from mnif_nerf.objects.radiance import NeuralObject


class Radiance(Modality):
    """See the module."""

    name, noun, nouns = "radiance", "object", "objects"
    heads = ("radiance", "radiance-authors")
    object_class = NeuralObject

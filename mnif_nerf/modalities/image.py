"""The modality "image"."""

from __future__ import annotations

from mnif_nerf.modalities.base import Modality
from mnif_nerf.objects.solid import NeuralImage


class Image(Modality):
    """See the module."""

    name, noun, nouns = "image", "picture", "pictures"
    heads = ("signed",)
    object_class = NeuralImage

"""Generated and reconstructed objects. Importing the room registers the class of every modality."""

from mnif_nerf.objects.base import NeuralObject, ObjectFacts, object_class
from mnif_nerf.objects.image import NeuralImage
from mnif_nerf.objects.object_list import ObjectList
from mnif_nerf.objects.radiance import NeuralRadiance
from mnif_nerf.objects.shape import NeuralShape
from mnif_nerf.objects.signal import NeuralSignal
from mnif_nerf.objects.solid import SolidObject
from mnif_nerf.objects.surface import NeuralSurface

__all__ = [
    "NeuralImage",
    "NeuralObject",
    "NeuralRadiance",
    "NeuralShape",
    "NeuralSignal",
    "NeuralSurface",
    "ObjectFacts",
    "ObjectList",
    "SolidObject",
    "object_class",
]

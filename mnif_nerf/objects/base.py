"""One generated or reconstructed object: a latent, its small network, and what can be made of both.

`NeuralObject` has what every kind has. Solids, pictures and signals add their own ways to be looked at and written;
none of them has a method that it must refuse.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.compact import CompactField
from mnif_nerf.labels import Label
from mnif_nerf.machine import check_memory
from mnif_nerf.objects.io import ObjectFacts, StoredObject, read_object, write_object
from mnif_nerf.rendering.cameras import Intrinsics, default_camera

if TYPE_CHECKING:
    from PIL import Image
    from typing_extensions import Self

__all__ = ["NOTEBOOK_PIXELS", "NeuralObject", "ObjectFacts", "check_pixels", "check_size", "object_class"]

NOTEBOOK_PIXELS = 160  # of an object's picture in a notebook: rendered in a few hundredths of a second
_BYTES_PER_PIXEL = 256  # rays, the intervals they are sampled in, and the outputs
_CLASSES: dict[str, type[NeuralObject]] = {}


class NeuralObject(ABC):
    """A latent `[D]` and its collapsed field, which is shown and saved without the basis networks.

    A subclass that names a `modality` is the class of that modality's objects.

    Args:
        latent: `[D]`; None for an object that was mixed layer by layer and may correspond to no latent.
        field: the collapsed field of that latent.
        name: for captions and file names.
        facts: bounds, scene box, camera and grid.
        coefficients: mixture coefficients `[M, L]` of an object without a latent, for further editing; else None.

    Attributes:
        label: what a training instance is said to be, or what a sample was asked to be; often nothing.
    """

    modality: ClassVar[str]
    has_surface: ClassVar[bool] = False
    """Whether it is a `SolidObject`, with cameras, meshes and voxels."""

    def __init__(
        self,
        latent: Tensor | None,
        field: CompactField,
        name: str = "object",
        facts: ObjectFacts | None = None,
        coefficients: Tensor | None = None,
    ) -> None:
        self._latent = latent
        self.coefficients = coefficients
        self.field = field
        self.name = name
        self.facts = facts or ObjectFacts()
        self.label: Label = {}

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        if "modality" in cls.__dict__:
            _CLASSES[cls.modality] = cls

    def __repr__(self) -> str:
        made_of = f"latent of {len(self.latent)}" if self.has_latent else "mixed by layers, without a latent"
        return f"{type(self).__name__}({self.name!r}, {made_of})"

    def _repr_png_(self) -> bytes:
        """What Jupyter shows of the object."""
        from mnif_nerf.export.pictures import png_bytes

        return png_bytes(self.picture(NOTEBOOK_PIXELS))

    @abstractmethod
    def picture(self, resolution: int = 256) -> Image.Image:
        """One picture (RGB) that tells the object from others; its longer edge has `resolution` pixels.

        Raises:
            MNIFError: a resolution below 1 or too large for the memory.
        """

    def own_picture(self, resolution: int | None = None) -> Image.Image:
        """The picture as a file keeps it: `picture`, unless the data are pictures; then `resolution` may be None for
        theirs."""
        return self.picture() if resolution is None else self.picture(resolution)

    def save_values(self, stem: Path) -> list[Path]:
        """Write what no picture holds beside it, as files named `stem` with their own suffixes; returns them."""
        return []

    @property
    def has_latent(self) -> bool:
        """False for an object that was mixed layer by layer (`MNIFPipeline.mix_layers`)."""
        return self._latent is not None

    @property
    def latent(self) -> Tensor:
        """The latent `[D]` that the field is collapsed from.

        Raises:
            MNIFError: the object was mixed layer by layer, so there is none that would give it back.
        """
        if self._latent is None:
            raise MNIFError(
                f"{self.name}: was mixed layer by layer, so no latent gives it; "
                "MNIFPipeline.project has the latent that comes nearest."
            )
        return self._latent

    @property
    def cells(self) -> Tensor | None:
        """Bool `[G, G, G]` where a solid can be, or None."""
        return self.facts.cells

    @property
    def half_extent(self) -> float:
        """Half the edge of the scene box, world units."""
        return self.facts.half_extent

    @property
    def camera(self) -> dict[str, float]:
        """ "focal_over_width" and "radius" of the training cameras."""
        return self.facts.camera or default_camera()

    @property
    def resolution(self) -> int | None:
        """Cells along the longest edge of the training data, where that is a grid; else None."""
        return None if self.facts.grid is None else self.facts.grid.resolution

    def save(self, path: Path | str) -> Path:
        """Write latent (else coefficients), network and facts as one safetensors file (about 100 KB), atomically."""
        stored = StoredObject(self.modality, self.name, self._latent, self.coefficients, self.field, self.facts)
        return write_object(stored, path)

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str = "cpu") -> Self:
        """Read back `save`, as the class that wrote it.

        Raises:
            MNIFError: the file is missing, damaged, of another kind, or holds an object of another class.
        """
        stored = read_object(path, device)
        kind = object_class(stored.modality, path)
        if not issubclass(kind, cls):
            raise MNIFError(
                f"{path}: holds a {kind.__name__}, not a {cls.__name__}; read it with {kind.__name__}.load."
            )
        return kind(stored.latent, stored.field, stored.name, stored.facts, stored.coefficients)


def object_class(modality: str, place: Path | str) -> type[NeuralObject]:
    """The class of the objects of a modality.

    Raises:
        MNIFError: a modality this version does not know; the sentence begins with `place`.
    """
    if modality not in _CLASSES:
        raise MNIFError(f"{place}: modality {modality!r} is not known; this version has {', '.join(_CLASSES)}.")
    return _CLASSES[modality]


def check_pixels(resolution: int, samples: int = 1) -> None:
    """Refuse a picture of no pixels, or (with `samples` rays per pixel) of too many for this machine's free memory.

    Raises:
        MNIFError: with the largest resolution that fits.
    """
    if resolution < 1:
        raise MNIFError(f"`resolution` {resolution} has no pixels; use at least 1 (256 is usual).")
    check_memory(resolution, _BYTES_PER_PIXEL * samples, dimensions=2)


def check_size(intrinsics: Intrinsics, samples: int = 1) -> None:
    """`check_pixels` of a picture that need not be square."""
    width, height = intrinsics.width, intrinsics.height
    if min(width, height) < 1:
        raise MNIFError(f"a picture of {width} x {height} has no pixels; use at least 1 x 1 (256 x 256 is usual).")
    # The square of as many pixels, rounded up.
    check_pixels(math.isqrt(width * height - 1) + 1, samples)

"""The base of all modalities: what the rest of the package may ask of a kind of signal."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from mnif_nerf.objects.radiance import NeuralObject


class Modality(ABC):
    """One kind of signal: its words, its field's ends, its objects, and what can be done with them.

    Attributes:
        name: as in model folders, object files and methods.
        noun, nouns: what a message calls one instance and several.
        heads: output heads (`mnif_nerf.fields.heads`) that its fields may have.
    """

    name: ClassVar[str]
    noun: ClassVar[str]
    nouns: ClassVar[str]
    heads: ClassVar[tuple[str, ...]]

    @property
    @abstractmethod
    def object_class(self) -> type[NeuralObject]:
        """The class of its objects."""

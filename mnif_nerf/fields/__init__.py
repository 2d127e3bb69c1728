"""Fields: SIREN layers, mixtures of basis networks, and the collapsed field of one instance (torch only)."""

from mnif_nerf.fields.compact import CompactField
from mnif_nerf.fields.mixture import FieldSpec, MixtureField

__all__ = ["CompactField", "FieldSpec", "MixtureField"]

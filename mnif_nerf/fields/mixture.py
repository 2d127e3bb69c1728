"""Former place of `FieldSpec` and `MixtureField`; removed before the redesign ends."""

from mnif_nerf.fields.modulations.mixture import MixtureField
from mnif_nerf.fields.spec import FieldSpec

__all__ = ["FieldSpec", "MixtureField"]

"""Fields: small networks, the modulations that make them from latents, and the collapsed field of one instance.

Only torch is needed.
"""

from mnif_nerf.fields.compact import CompactField
from mnif_nerf.fields.modulations import ModulatedField, build_field
from mnif_nerf.fields.modulations.mixture import MixtureField
from mnif_nerf.fields.spec import FieldSpec

__all__ = ["CompactField", "FieldSpec", "MixtureField", "ModulatedField", "build_field"]

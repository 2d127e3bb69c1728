"""Modulations: how a latent code makes the weights of one small network.

"mixture"   a weighted sum of basis networks (the paper)
"shift"     one shared network; latents shift the biases of its hidden layers (Functa)
"low-rank"  one shared network; latents scale its weights by a matrix of low rank
"""

from __future__ import annotations

from mnif_nerf.fields.modulations.base import ModulatedField
from mnif_nerf.fields.modulations.low_rank import LowRankField
from mnif_nerf.fields.modulations.mixture import MixtureField
from mnif_nerf.fields.modulations.shift import ShiftField
from mnif_nerf.fields.spec import FieldSpec

__all__ = ["LowRankField", "MixtureField", "ModulatedField", "ShiftField", "build_field"]

_CLASSES: dict[str, type[ModulatedField]] = {"mixture": MixtureField, "shift": ShiftField, "low-rank": LowRankField}


def build_field(spec: FieldSpec, seed: int | None = None) -> ModulatedField:
    """The untrained field of a specification.

    Args:
        spec: with the modulation.
        seed: random seed of the initial weights; None draws from torch's global generator.
    """
    return _CLASSES[spec.modulation](spec, seed)

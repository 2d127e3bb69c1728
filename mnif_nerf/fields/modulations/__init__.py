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
from mnif_nerf.limits import require_memory

__all__ = ["LowRankField", "MixtureField", "ModulatedField", "ShiftField", "build_field"]

_BYTES = 8  # of a number of the field while it is made: float32, and as much again for what it is made from
_CLASSES: dict[str, type[ModulatedField]] = {"mixture": MixtureField, "shift": ShiftField, "low-rank": LowRankField}


def build_field(spec: FieldSpec, seed: int | None = None) -> ModulatedField:
    """The untrained field of a specification.

    Args:
        spec: with the modulation.
        seed: random seed of the initial weights; None draws from torch's global generator.

    Raises:
        MNIFError: it is larger than the free memory.
    """
    require_memory(
        _BYTES * spec.num_parameters,
        f"a field of {spec.num_parameters:,} numbers (`width` {spec.width:,}, `hidden_layers` {spec.hidden_layers}, "
        f"`num_bases` {spec.num_bases:,}, `latent_dim` {spec.latent_dim:,})",
        "use smaller ones",
    )
    return _CLASSES[spec.modulation](spec, seed)

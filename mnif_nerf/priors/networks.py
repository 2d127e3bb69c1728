"""The networks that a latent prior can hold, and their names in prior.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mnif_nerf.errors import MNIFError
from mnif_nerf.priors.conditions import ConditionalDenoiser, ConditionalSpec
from mnif_nerf.priors.denoiser import Denoiser, DenoiserSpec
from mnif_nerf.priors.functa import FunctaDenoiser, FunctaSpec

AnyDenoiser = Denoiser | FunctaDenoiser

NETWORKS: dict[str, tuple[Any, Any]] = {
    "residual": (DenoiserSpec, Denoiser),
    "functa": (FunctaSpec, FunctaDenoiser),
    "conditional": (ConditionalSpec, ConditionalDenoiser),
}


def network_name(denoiser: AnyDenoiser) -> str:
    """The name of a denoiser's kind."""
    return next(name for name, (_, kind) in NETWORKS.items() if type(denoiser) is kind)


def network_kind(content: dict[str, Any], path: Path) -> tuple[Any, Any]:
    """Specification and module class that a prior.json names; version 0.1.0 knew one and did not name it.

    Raises:
        MNIFError: a name this version does not know.
    """
    name = content.get("network", "residual")
    if name not in NETWORKS:
        raise MNIFError(f"{path}: network {name!r} is not known; this version has {', '.join(NETWORKS)}.")
    return NETWORKS[name]


def check_shapes(path: Path, tensors: dict[str, Tensor], denoiser: nn.Module, sizes: tuple[int, int, int]) -> None:
    """Compare a prior's tensors with what its description asks for.

    Args:
        path: path of the tensors, for messages.
        tensors: by name, as `LatentPrior.state` gives them.
        denoiser: a denoiser of the described size.
        sizes: number of latents, their size, and the whitened dimensions.

    Raises:
        MNIFError: one is missing, too many, or of another shape.
    """
    count, latent_dim, dim = sizes
    expected: dict[str, tuple[int, ...]] = {f"denoiser.{k}": tuple(v.shape) for k, v in denoiser.state_dict().items()}
    expected |= {
        "whitening.mean": (latent_dim,),
        "whitening.basis": (latent_dim, dim),
        "whitening.scale": (dim,),
    }
    expected |= {"train": (count, dim), "calibration.gain": (dim,), "calibration.shift": (dim,)}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise MNIFError(
                f"{path}: {name} has shape {found.get(name)}, prior.json says {expected.get(name)}; "
                "train the prior again."
            )

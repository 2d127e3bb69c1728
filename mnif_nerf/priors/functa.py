"""The denoiser of the authors' release, so that their stage-2 checkpoints can be sampled.

A residual MLP shaped like a U-Net: the first half of the blocks keeps what it was given, the second half adds it
back, last kept first. Every block has two linear layers behind group normalisation and SiLU, with the embedded
diffusion time added between them. It predicts the clean latent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnif_nerf.errors import MNIFError, in_file
from mnif_nerf.files import from_description
from mnif_nerf.priors.denoiser import check_sizes, time_embedding


@dataclass(frozen=True)
class FunctaSpec:
    """Size of the authors' denoiser; the defaults are those of all their releases.

    Attributes:
        dim: D, dimensions of the latents (whitened per dimension, none left out).
        width: features per layer, a multiple of `groups`.
        blocks: residual blocks, an even number.
        time_features: features of the sinusoidal time embedding, even.
        groups: groups of every group normalisation.
    """

    dim: int
    width: int = 4096
    blocks: int = 8
    time_features: int = 64
    groups: int = 16

    def __post_init__(self) -> None:
        check_sizes(self)
        if min(self.dim, self.width, self.groups) < 1 or self.width % self.groups:
            raise MNIFError(
                f"denoiser: dim {self.dim}, width {self.width}, groups {self.groups}; all must be positive and the "
                "width a multiple of the groups."
            )
        if self.blocks < 2 or self.blocks % 2 or self.time_features < 2 or self.time_features % 2:
            raise MNIFError(
                f"denoiser: blocks {self.blocks}, time features {self.time_features}; both must be positive and even."
            )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> FunctaSpec:
        """The inverse of `to_dict`.

        Raises:
            MNIFError: a key is unknown, or one without a default is missing.
        """
        return from_description(cls, content, "denoiser", "import the checkpoint again")


class FunctaDenoiser(nn.Module):
    """The authors' network; predicts the clean latent."""

    ddim_spacing: ClassVar[str] = "leading"  # as the authors respace DDIM, see `make_scheduler`

    def __init__(self, spec: FunctaSpec) -> None:
        super().__init__()
        self.spec = spec
        self.time = nn.Linear(spec.time_features, spec.time_features)
        self.input = nn.Linear(spec.dim, spec.width)
        self.blocks = nn.ModuleList(_Block(spec) for _ in range(spec.blocks))
        self.norm = nn.GroupNorm(spec.groups, spec.width)
        self.output = nn.Linear(spec.width, spec.dim)

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Predict clean latents.

        Args:
            noisy: [B, D] latents at diffusion time t.
            timesteps: [B] or scalar, t in [0, number of training timesteps).

        Returns:
            [B, D].
        """
        embedding = time_embedding(timesteps, self.spec.time_features).to(noisy.dtype)
        time = F.silu(self.time(embedding.expand(noisy.shape[0], -1)))
        hidden = self.input(noisy)
        kept: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            if index < self.spec.blocks // 2:
                kept.append(hidden)
            else:
                hidden = hidden + kept.pop()
            hidden = block(hidden, time)
        return self.output(F.silu(self.norm(hidden)))


class _Block(nn.Module):
    def __init__(self, spec: FunctaSpec) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(spec.groups, spec.width)
        self.first = nn.Linear(spec.width, spec.width)
        self.time = nn.Linear(spec.time_features, spec.width)
        self.norm2 = nn.GroupNorm(spec.groups, spec.width)
        self.second = nn.Linear(spec.width, spec.width)

    def forward(self, hidden: Tensor, time: Tensor) -> Tensor:
        """One step of the residual stream `[B, width]`; `time` `[B, time_features]` has its SiLU behind it."""
        inner = self.first(F.silu(self.norm1(hidden))) + self.time(time)
        return hidden + self.second(F.silu(self.norm2(inner)))


# Where each of the authors' parameters goes, without ".weight" and ".bias"; "{}" is the number of a block.
_NAMES = {
    "block_time.0": "time",
    "block_input": "input",
    "blocks.{}.block1.0": "blocks.{}.norm1",
    "blocks.{}.block1.2": "blocks.{}.first",
    "blocks.{}.blockt.1": "blocks.{}.time",
    "blocks.{}.block2.0": "blocks.{}.norm2",
    "blocks.{}.block2.3": "blocks.{}.second",
    "block_output.0": "norm",
    "block_output.2": "output",
}


# Settings of the authors' that add parameters, by a part of their names.
_OTHERS = {
    "block_time.": " (num_time_layers above 1)",
    "affine_time": " (net_type functa-affine)",
    "affine_idx": " (use_cond_index)",
}


def authors_names(blocks: int) -> dict[str, str]:
    """Name of every parameter in the authors' network to its name in `FunctaDenoiser`."""
    pairs = {}
    for theirs, ours in _NAMES.items():
        for block in range(blocks if "{}" in theirs else 1):
            for kind in ("weight", "bias"):
                pairs[f"{theirs.format(block)}.{kind}"] = f"{ours.format(block)}.{kind}"
    return pairs


def check_released_network(names: Iterable[str], place: str) -> None:
    """Refuse a network with parameters that `FunctaDenoiser` has no place for: leaving them out would change it.

    Args:
        names: by the authors, without prefix.
        place: the file, for messages.

    Raises:
        MNIFError: with the first such parameter, and the setting that it comes from where that is known.
    """
    names = list(names)
    known = authors_names(len({name.split(".")[1] for name in names if name.startswith("blocks.")}))
    strange = sorted(set(names) - set(known))
    if not strange:
        return
    why = next((text for part, text in _OTHERS.items() if part in strange[0]), "")
    raise MNIFError(
        f"{place}: its denoiser has {strange[0]}{why}; only the residual MLP of the released configurations "
        "(net_type functa, num_time_layers 1) can be imported."
    )


def functa_from_authors(weights: dict[str, Tensor], place: str) -> FunctaDenoiser:
    """Build the network from the authors' parameters.

    Args:
        weights: by the authors' names, such as "blocks.0.block1.2.weight".
        place: the file, for messages.

    Returns:
        The network in evaluation mode; its size is read off the shapes.

    Raises:
        MNIFError: a parameter is missing, of another shape, or not finite.
    """
    blocks = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    names = authors_names(blocks)
    for name in names:
        if name not in weights:
            raise MNIFError(
                f"{place}: its denoiser has no {name}; only the residual MLP of the released configurations "
                "(net_type functa) can be imported."
            )
    width, dim = _matrix(weights, "block_input.weight", place)
    time_features = _matrix(weights, "block_time.0.weight", place)[1]
    try:
        spec = FunctaSpec(dim, width, blocks, time_features)
    except MNIFError as error:
        raise in_file(place, error) from None
    with torch.device("meta"):
        denoiser = FunctaDenoiser(spec)
    state = {ours: weights[theirs].detach().float() for theirs, ours in names.items()}
    expected = denoiser.state_dict()
    for theirs, ours in names.items():
        if state[ours].shape != expected[ours].shape:
            raise MNIFError(
                f"{place}: {theirs} has shape {list(state[ours].shape)}, but its other layers ask for "
                f"{list(expected[ours].shape)}; the file is damaged or of another network."
            )
        if not bool(torch.isfinite(state[ours]).all()):
            raise MNIFError(f"{place}: {theirs} has NaN or infinite numbers; use another checkpoint.")
    denoiser.load_state_dict(state, assign=True)
    return denoiser.eval().requires_grad_(False)


def _matrix(weights: dict[str, Tensor], name: str, place: str) -> tuple[int, int]:
    shape = weights[name].shape
    if len(shape) != 2:
        raise MNIFError(f"{place}: {name} has shape {list(shape)}, expected a matrix; the file is damaged.")
    return int(shape[0]), int(shape[1])

"""The denoiser of the latent prior: a residual MLP that is told the diffusion time."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnif_nerf.errors import MNIFError
from mnif_nerf.files import from_description
from mnif_nerf.limits import require_count, require_number

_MOST, _MOST_BLOCKS = 1_000_000, 1000


def check_sizes(spec: Any) -> None:
    """Refuse what is no whole number, or beyond any network, among the sizes of a denoiser.

    Args:
        spec: `DenoiserSpec` or `FunctaSpec`.

    Raises:
        MNIFError: with the first.
    """
    for field in fields(spec):
        value = getattr(spec, field.name)
        if field.name == "dropout":
            require_number("dropout of the denoiser", value, 0.0, 1.0)
        else:
            most = _MOST_BLOCKS if field.name == "blocks" else _MOST
            require_count(f"`{field.name}` of the denoiser", value, 0, most)


@dataclass(frozen=True)
class DenoiserSpec:
    """Size of a denoiser.

    Attributes:
        dim: K, dimensions of the (whitened) latents.
        width: features per layer.
        blocks: residual blocks of two linear layers each.
        time_features: features of the sinusoidal time embedding, even.
        dropout: share of features dropped in each block during training.
    """

    dim: int
    width: int = 128
    blocks: int = 3
    time_features: int = 64
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_sizes(self)
        if min(self.dim, self.width, self.blocks) < 1 or self.time_features < 2 or self.time_features % 2:
            raise MNIFError(
                f"denoiser: dim {self.dim}, width {self.width}, blocks {self.blocks}, time features "
                f"{self.time_features}; all must be positive and the last one even."
            )

    @classmethod
    def for_data(cls, num_latents: int, dim: int) -> DenoiserSpec:
        """A size that follows the data: 128 x 3 for a few hundred latents, 512 x 6 for tens of thousands.

        The authors' 272 M parameters for 2,458 vectors can store every one of them; here the parameters grow
        roughly with the count of numbers N x K. On 128 latents, width 192 copied more than 128 at equal steps
        and width 64 was blurred.
        """
        numbers = num_latents * dim
        width = 128 if numbers < 20_000 else 256 if numbers < 200_000 else 384 if numbers < 1_000_000 else 512
        blocks = 3 if numbers < 20_000 else 4 if numbers < 1_000_000 else 6
        return cls(dim=dim, width=width, blocks=blocks)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> DenoiserSpec:
        """The inverse of `to_dict`.

        Raises:
            MNIFError: a key is unknown, or one without a default is missing.
        """
        return from_description(cls, content, "denoiser", "train the prior again")


class Denoiser(nn.Module):
    """Residual MLP; predicts what its scheduler is set to (v, the clean latent or the noise).

    The last layer starts at zero. With v prediction on whitened latents a zero output is the exact denoiser
    of a standard Gaussian (E[x0 | x_t] = alpha_t x_t), so training starts from the Gaussian prior and learns
    the departures from it: an undertrained prior is too smooth, but keeps the data's spread.
    """

    ddim_spacing: ClassVar[str] = "linspace"  # see `make_scheduler`

    def __init__(self, spec: DenoiserSpec) -> None:
        super().__init__()
        self.spec = spec
        self.input = nn.Linear(spec.dim, spec.width)
        self.time = nn.Linear(spec.time_features, spec.time_features)
        self.blocks = nn.ModuleList(_Block(spec) for _ in range(spec.blocks))
        self.norm = nn.LayerNorm(spec.width)
        self.output = nn.Linear(spec.width, spec.dim)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Predict from noisy latents.

        Args:
            noisy: [B, K] latents at diffusion time t.
            timesteps: [B] or scalar, t in [0, number of training timesteps).

        Returns:
            [B, K], the scheduler's prediction type.
        """
        return self._predict(noisy, self._embedded(noisy, timesteps))

    def _embedded(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Times `[B, time features]`."""
        embedding = time_embedding(timesteps, self.spec.time_features).to(noisy.dtype)
        return self.time(embedding.expand(noisy.shape[0], -1))

    def _predict(self, noisy: Tensor, told: Tensor) -> Tensor:
        """The prediction `[B, K]` from noisy latents and all that is told of them `[B, time features]`."""
        time = F.silu(told)
        hidden = self.input(noisy)
        for block in self.blocks:
            hidden = block(hidden, time)
        return self.output(F.silu(self.norm(hidden)))


class _Block(nn.Module):
    def __init__(self, spec: DenoiserSpec) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(spec.width)
        self.first = nn.Linear(spec.width, spec.width)
        self.modulation = nn.Linear(spec.time_features, 2 * spec.width)
        self.dropout = nn.Dropout(spec.dropout)
        self.second = nn.Linear(spec.width, spec.width)
        nn.init.zeros_(self.second.weight)  # every block starts as the identity
        nn.init.zeros_(self.second.bias)

    def forward(self, hidden: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.modulation(time).chunk(2, dim=-1)
        inner = self.first(F.silu(self.norm(hidden))) * (1 + scale) + shift
        return hidden + self.second(self.dropout(F.silu(inner)))


def time_embedding(timesteps: Tensor, features: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal embedding of diffusion times: [B] or scalar -> [B or 1, features], float32, in [-1, 1]."""
    half = features // 2
    frequencies = torch.exp(torch.arange(half, device=timesteps.device) * (-math.log(max_period) / half))
    angles = timesteps.reshape(-1, 1).float() * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)

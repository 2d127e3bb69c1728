"""How smoothly values follow a latent: sensitivity, curvature and path length of a map, by its derivatives.

A map takes latents `[B, K]` to values `[B, F]`, row by row: row b of the result depends on row b of the argument alone.
So one Jacobian-vector product serves a whole batch. A map must be made of torch operations that differentiate in
forward mode (of a mixture field: within `mnif_nerf.fields.kernel.reference_only`).

Norms of values are root mean squares over the F values, so that results do not depend on how many points are looked
at; norms of latents are Euclidean.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


def directional_derivatives(function: Map, at: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, first and second derivative of `function(at + t * directions)` in t, at t = 0, by nested products.

    Args:
        function: the map.
        at, directions: `[B, K]`.

    Returns:
        three tensors `[B, F]`.
    """

    def value_and_slope(latents: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.jvp(function, (latents,), (directions,))  # type: ignore[no-any-return]

    (value, slope), (_, second) = torch.func.jvp(value_and_slope, (at,), (directions,))
    return value, slope, second


def local_lipschitz(
    function: Map,
    at: Tensor,
    seed: int = 0,
    tolerance: float = 1e-3,
    max_iterations: int = 50,
) -> Tensor:
    """The local Lipschitz constant: the largest singular value of the Jacobian, by power iteration on J^T J.

    The most that a value can change per unit step of the latent. Power iteration approaches it from below, and stops
    when no latent's estimate grows by more than `tolerance` in a step.

    Args:
        function: the map.
        at: `[B, K]`.
        seed: random seed of the start, which is random so that it is orthogonal to no singular vector.
        tolerance: relative.
        max_iterations: where two singular values are nearly equal, their common value is found long before.

    Returns:
        `[B]`, root mean square of the values per unit of the latent; 0 where nothing depends on the latent.
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(at.shape, generator=generator, dtype=torch.float64).to(at)
    direction = start / start.norm(dim=1, keepdim=True)
    estimate = at.new_zeros(len(at))
    value, pullback = torch.func.vjp(function, at)
    root = math.sqrt(value.shape[1])
    for _ in range(max_iterations):
        image = torch.func.jvp(function, (at,), (direction,))[1] / root
        before, estimate = estimate, image.norm(dim=1)
        if bool((estimate - before <= tolerance * estimate).all()):
            break
        (back,) = pullback(image / root)
        size = back.norm(dim=1, keepdim=True)
        direction = torch.where(size > 0, back / size.clamp(min=torch.finfo(back.dtype).tiny), direction)
    return estimate


def jacobian_norm(function: Map, at: Tensor, directions: int | None = None, seed: int = 0) -> Tensor:
    """The Jacobian's Frobenius norm: the root mean square change of the values for a step drawn from N(0, I).

    (As far as the map is linear.) Coordinates that change nothing do not change it. Its square over that of
    `local_lipschitz`, the stable rank, says in how many directions the values move about equally fast.

    Args:
        function: the map.
        at: `[B, K]`.
        directions: how many orthonormal directions are tried; all K (exact) when None or above K. With fewer the
            square is unbiased.
        seed: random seed of the directions.

    Returns:
        `[B]`, in the unit of `local_lipschitz`.
    """
    size = at.shape[1]
    count = size if directions is None else min(directions, size)
    if count == size:
        frame = torch.eye(size, dtype=torch.float64)
    else:
        generator = torch.Generator().manual_seed(seed)
        frame = torch.linalg.qr(torch.randn(size, count, generator=generator, dtype=torch.float64)).Q.T
    total = at.new_zeros(len(at))
    for direction in frame.to(at):
        image = torch.func.jvp(function, (at,), (direction.expand_as(at).contiguous(),))[1]
        total = total + image.square().mean(dim=1)
    return (total * (size / count)).sqrt()


def turning(first: Tensor, second: Tensor) -> Tensor:
    """Angle by which the path of the values turns, per unit of the path's parameter.

    |f''_p| / |f'|, with f''_p the part of f'' at a right angle to f'. A straight path has 0 even if its speed changes.

    Args:
        first, second: `[..., F]`, derivatives of a path of values (`directional_derivatives`).

    Returns:
        `[...]` radians per unit; 0 where the path stands still.
    """
    speed = first.norm(dim=-1)
    return curvature(first, second) * speed / math.sqrt(first.shape[-1])


def curvature(first: Tensor, second: Tensor) -> Tensor:
    """Curvature of the path of the values: the angle by which it turns per unit of its own length.

    |f''_p| / |f'|^2, in root-mean-square norms: 1 / r on a circle of (root-mean-square) radius r, however fast it is
    run through.

    Args:
        first, second: `[..., F]`, as in `turning`.

    Returns:
        `[...]` radians per root mean square of the values; 0 where the path stands still.
    """
    tiny = torch.finfo(first.dtype).tiny
    square = first.square().sum(dim=-1, keepdim=True)
    along = (first * second).sum(dim=-1, keepdim=True) / square.clamp(min=tiny)
    bent = (second - along * first).norm(dim=-1)
    square = square[..., 0]
    return torch.where(square > 0, bent / square.clamp(min=tiny), 0.0) * math.sqrt(first.shape[-1])


def path_length(first: Tensor, at: Tensor) -> Tensor:
    """Length of a path of values: the integral of its speed, by the trapezoidal rule.

    The sum of straight steps between as many positions is further off: with 17 of them on a voxel model by 4 to 8 %,
    against 3 % at most.

    Args:
        first: `[..., S, F]`, derivatives of the path at S >= 2 positions.
        at: `[S]`, the parameter there, ascending.

    Returns:
        `[...]`, root mean squares.
    """
    return torch.trapezoid(_size(first), at, dim=-1)


def detour(values: Tensor, first: Tensor, at: Tensor) -> Tensor:
    """Length of a path over the straight distance of its ends, at least 1.

    Args:
        values: `[..., S, F]`, the path.
        first, at: as in `path_length`.

    Returns:
        `[...]`; infinity for a path that comes back to its start, 1 for one that never leaves it.
    """
    length = path_length(first, at)
    chord = _size(values[..., -1, :] - values[..., 0, :])
    return torch.where(length > 0, (length / chord).clamp(min=1.0), 1.0)


def _size(difference: Tensor) -> Tensor:
    return difference.square().mean(dim=-1).sqrt()

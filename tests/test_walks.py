"""Walks through latent space, and the timing of ways between given objects."""

from __future__ import annotations

import pytest
import torch

from mnif_nerf.errors import MNIFError
from mnif_nerf.priors.walks import closed_walk, eased_legs
from mnif_nerf.priors.whitening import Whitening


def test_walks_are_closed_even_and_as_far_out_as_their_stops() -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(50, 12, generator=generator) * torch.linspace(0.1, 3, 12) + 5
    whitening = Whitening.fit(latents)
    stops = latents[:5]
    path = closed_walk(whitening, stops, 400)
    assert path.shape == (400, 12)
    assert torch.allclose(path[0], stops[0], atol=1e-3)
    white, keys = whitening.whiten(path), whitening.whiten(stops)
    assert torch.cdist(white, keys).min(dim=0).values.max() < 0.1  # it passes all of them
    steps = (white.roll(-1, 0) - white).norm(dim=1)  # the last one back to the start
    assert steps.max() / steps.min() < 1.1
    turns = (white.roll(-1, 0) - 2 * white + white.roll(1, 0)).norm(dim=1)
    assert turns.max() < 0.2 * steps.mean()  # no corners, at the stops neither
    assert white.norm(dim=1).min() > 0.8 * keys.norm(dim=1).min()
    straight = (keys[0] + keys[1]) / 2
    assert straight.norm() < 0.8 * keys.norm(dim=1).min()
    for bad, words in ((stops[:1], "nowhere"), (stops[:1].repeat(3, 1), "same object")):
        with pytest.raises(MNIFError, match=words):
            closed_walk(whitening, bad, 10)
    with pytest.raises(MNIFError, match="0 frames"):
        closed_walk(whitening, stops, 0)


def test_eased_legs() -> None:
    assert eased_legs(2, 3) == [(0, 1, 0.0), (0, 1, 0.5), (0, 1, 1.0)]
    loop = eased_legs(3, 6, loop=True)
    assert [plan[:2] for plan in loop] == [(0, 1), (0, 1), (1, 2), (1, 2), (2, 0), (2, 0)]
    shares = [share for _, _, share in eased_legs(2, 101)]
    assert shares[1] < 0.001 < shares[50] - shares[49] < 0.016
    for arguments in ((1, 5), (2, 1)):
        with pytest.raises(MNIFError, match="no two ends"):
            eased_legs(*arguments)

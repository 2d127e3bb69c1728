"""Streams of random numbers: independent by purpose and step, and the same everywhere."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import tiny_model
from tiny_srn import write_tiny_srn

from mnif_nerf.data.sampling.ray_sampler import RayBatchSampler
from mnif_nerf.data.stores.scene_store import open_store
from mnif_nerf.latents.evidence import PointEvidence, PointPool


def stream(seed: int, name: str, *numbers: int) -> int:
    return importlib.import_module("mnif_nerf.random").stream(seed, name, *numbers)


def test_streams_are_repeatable_and_differ_by_every_part() -> None:
    assert stream(3, "jitter", 5) == 7892955340692378310, "the same on every machine and in every version"
    parts = [(seed, name, *numbers) for seed in range(4) for name in ("rays", "jitter")
             for numbers in ((), (0,), (1,), (0, 0), (1, 0), (0, 1))]  # fmt: skip
    seeds = {stream(*part) for part in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_streams_are_uncorrelated() -> None:
    seeds = [stream(s, n, k) for s in (0, 1) for n in ("rays", "jitter") for k in range(5)]
    draws = torch.stack([torch.randn(2000, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    correlation = np.corrcoef(draws.numpy())
    assert np.abs(correlation - np.eye(len(draws))).max() < 0.1


def test_purposes_of_one_run_never_share_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    class Recorder(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            seen.append(seed)
            return super().manual_seed(seed)

    store = open_store(write_tiny_srn(tmp_path, scenes=3, views=3, resolution=8), "train", progress=False)
    field = tiny_model().field
    pool = PointPool(torch.zeros(30, 3), torch.zeros(30, 1), 1.0)
    monkeypatch.setattr(torch, "Generator", Recorder)
    for seed in (0, 1):
        sampler, evidence = RayBatchSampler(store, 2, 4, seed=seed), PointEvidence(field, [pool], 8, seed=seed)
        for step in range(8):
            sampler.draw(step)
            evidence.draw(1, step)
        sampler.fixed(torch.arange(3))
    assert len(seen) > 2 * 12
    assert len(set(seen)) == len(seen)


def test_seeds_are_never_made_by_arithmetic() -> None:
    package = Path(importlib.import_module("mnif_nerf").__file__ or "").parent
    made = re.compile(r"manual_seed\([^\n]*seed \* ")
    assert [str(file) for file in package.rglob("*.py") if made.search(file.read_text(encoding="utf-8"))] == []

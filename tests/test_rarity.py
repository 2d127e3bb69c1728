"""Rarity of latents, and drawing again what is too rare."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mnif_nerf.cli.sample import SampleOptions
from mnif_nerf.cli.sample import main as sample
from mnif_nerf.errors import MNIFError
from mnif_nerf.files import read_json
from mnif_nerf.latents import rarity as module
from mnif_nerf.latents.rarity import Rarity, less_rare
from mnif_nerf.pipelines.generation import MNIFPipeline


def line(count: int = 40) -> torch.Tensor:
    """Latents on a line, farther apart the farther out."""
    return torch.stack([torch.linspace(0, 1, count) ** 2, torch.zeros(count)], dim=1)


def test_rarity_grows_where_latents_are_sparse() -> None:
    found = Rarity(line())(torch.tensor([[0.0, 0.0], [0.4, 0.0], [0.95, 0.0], [0.4, 3.0]]))
    assert found[0] < found[1] < found[2] <= found[3]
    assert found[3] == 1.0  # farther out than any latent


def test_training_latents_spread_over_all_ranks() -> None:
    known = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    # A latent is its own nearest one here, so it looks a little less rare than it is among the others.
    assert float(Rarity(known)(known).mean()) == pytest.approx(0.45, abs=0.1)
    fresh = torch.randn(300, 6, generator=torch.Generator().manual_seed(1))
    assert float(Rarity(known)(fresh).mean()) == pytest.approx(0.5, abs=0.06)


def test_few_references_rank_like_all(monkeypatch: pytest.MonkeyPatch) -> None:
    known = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    codes = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    all_of_them = Rarity(known)(codes)
    monkeypatch.setattr(module, "_MOST_REFERENCES", 100)
    monkeypatch.setattr(module, "_CHUNK", 16)
    assert float((Rarity(known)(codes) - all_of_them).abs().max()) < 0.12


def test_nothing_is_rare_among_few() -> None:
    assert Rarity(torch.randn(6, 3))(torch.full((2, 3), 9.0)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("most", [0.0, 1.5, -1.0, float("nan")])
def test_no_share(most: float) -> None:
    with pytest.raises(MNIFError, match="no share"):
        less_rare(lambda count, attempt: torch.zeros(count, 2), 1, Rarity(line()), most)


def test_what_is_typical_stays_and_the_least_rare_is_kept() -> None:
    outside = {0: (9.0, 9.0), 1: (8.0, 0.1), 2: (7.0, 7.0)}

    def draw(count: int, attempt: int) -> torch.Tensor:
        far = outside.get(attempt, (9.0, 9.0))
        return torch.tensor([[0.01, 0.0], [far[0], 0.0], [far[1], 0.0]])[:count]

    kept = less_rare(draw, 3, Rarity(line()), 0.5)
    assert kept[0].tolist() == pytest.approx([0.01, 0.0])  # typical at once
    assert kept[1, 0] >= 7.0  # never typical
    assert kept[2, 0] == pytest.approx(0.1)  # of the second draw
    assert torch.equal(less_rare(draw, 1, Rarity(line()), 0.5)[0], kept[0])


def test_pipeline_draws_typical_samples(pipe: MNIFPipeline) -> None:
    plain, typical = pipe.sample_latents(8, typical=1), pipe.sample_latents(8, typical=0.5)
    before, after = pipe.rarity(plain), pipe.rarity(typical)
    assert bool((after <= before).all())
    assert float(after.mean()) < float(before.mean())  # some of eight samples were rare
    assert torch.allclose(typical[:3], pipe.sample_latents(3, typical=0.5), atol=1e-5)  # of another batch size
    assert torch.equal(torch.stack([item.latent for item in pipe(8, typical=0.5)]), typical)


def test_command_tells_rarities(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"views": 1, "resolution": 8, "turntable": False, "integrity": False, "num_samples": 3}
    output = sample(SampleOptions(str(trained), typical=0.9, output=tmp_path / "out", **options))
    facts = read_json(output / "samples.json")
    assert facts["typical"] == 0.9
    assert all(0 <= entry["rarity"] <= 1 for entry in facts["samples"])
    assert "rarer than 90% of the training instances were drawn again" in capsys.readouterr().out
    with pytest.raises(MNIFError, match="a walk between instances has none"):
        sample(SampleOptions(str(trained), typical=0.9, interpolate=("0", "1")))

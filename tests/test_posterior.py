"""Several answers to a part: what is drawn is the posterior; the command."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_fit_command import FAST, written
from test_fit_search import Bowl, views_of
from tiny_model import tiny_image_model, tiny_model, tiny_surface_model, tiny_voxel_model
from torch import Tensor

from mnif_nerf.cli.answers import clear_answers
from mnif_nerf.cli.fit import ARGUMENTS, FitOptions, main
from mnif_nerf.cli.generation_common import read_latents
from mnif_nerf.data.observations.observations import Photo
from mnif_nerf.errors import MNIFError, flag_paths, with_flags
from mnif_nerf.latents.distance_evidence import DistanceEvidence
from mnif_nerf.latents.poses import PoseSearchConfig, Round
from mnif_nerf.latents.search import LatentSpace, SearchConfig, search
from mnif_nerf.pipelines.fit.answers import answer_scores
from mnif_nerf.pipelines.fit.fitting import FitSettings, fit_observation
from mnif_nerf.pipelines.fit.held import held_task, redraw
from mnif_nerf.pipelines.fit.pictures import answers_sheet
from mnif_nerf.pipelines.fit.posterior import AnswerConfig, Answers
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.pipelines.model_folder import StoredModel
from mnif_nerf.priors.prior import LatentPrior
from mnif_nerf.priors.schedulers import sample_streams
from mnif_nerf.priors.training import PriorConfig
from mnif_nerf.priors.whitening import Whitening


def gaussian(count: int = 400, dim: int = 6) -> tuple[Callable[[int, int], Tensor], Tensor]:
    """Draws of an exact prior of Gaussian latents, and the latents."""
    generator = torch.Generator().manual_seed(0)
    turn, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator))
    widths = torch.linspace(2.0, 0.2, dim)
    latents = 0.3 + (torch.randn(count, dim, generator=generator) * widths) @ turn.T
    whitening = Whitening.fit(latents)

    def sample(number: int, seed: int) -> Tensor:
        rows = [torch.randn(dim, generator=stream) for stream in sample_streams(number, seed)]
        return whitening.unwhiten(torch.stack(rows))

    return sample, latents


def test_answers_are_the_posterior_of_a_gaussian() -> None:
    """Seen directions come out as seen; unseen ones keep the mean and the deviation of the prior."""
    sample, latents = gaussian()
    space = LatentSpace.from_latents(latents)
    seen = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0])

    class Seen(Bowl):
        def losses(self, codes: Tensor, step: int) -> Tensor:
            return (seen * (space.coordinates(codes) - self.target)).square().sum(dim=1)

    evidence = Seen(torch.tensor([1.5, 9, 9, -1.0, 9, 9]), seen)
    config = AnswerConfig(candidates=4, steps=60)
    draws = Answers(sample, evidence, space, SearchConfig(lr=0.1, weight=1e-3), config)
    found = space.coordinates(draws.draw(64, seed=3))
    torch.testing.assert_close(found[:, [0, 3]], torch.tensor([[1.5, -1.0]]).expand(64, 2), atol=0.15, rtol=0)
    rest = found[:, [1, 2, 4, 5]]
    assert rest.mean(dim=0).abs().max() < 0.4
    torch.testing.assert_close(rest.std(dim=0), torch.ones(4), atol=0.25, rtol=0)


def test_an_answer_does_not_depend_on_how_many_there_are() -> None:
    sample, latents = gaussian()
    space = LatentSpace.from_latents(latents)
    draws = Answers(sample, Bowl(latents[0], torch.ones(6)), space, SearchConfig(), AnswerConfig(4, 5))
    four = draws.draw(4)
    torch.testing.assert_close(draws.draw(2), four[:2], atol=1e-4, rtol=1e-4)
    assert float((draws.draw(4, seed=1) - four).abs().max()) > 1e-3
    for wrong in (0, 65):
        with pytest.raises(MNIFError, match="`samples`"):
            draws.draw(wrong)


def test_a_search_is_held_to_its_own_centre() -> None:
    latents = gaussian()[1]
    space = LatentSpace.from_latents(latents)
    nothing = Bowl(torch.zeros(6), torch.zeros(6))
    found = search(nothing, latents[:3], space, SearchConfig(steps=200, weight=1.0), centres=latents[3:6])
    torch.testing.assert_close(found, latents[3:6], atol=0.1, rtol=0)


# ------------------------------------------------------------------------------------------------------ the command


def with_prior(model: StoredModel) -> StoredModel:
    config = PriorConfig(steps=20, width=16, calibrate=False)
    return dataclasses.replace(model, prior=LatentPrior.fit(model.latents, config, progress=False))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of a few steps."""
    few = AnswerConfig(candidates=2, steps=3)
    monkeypatch.setattr("mnif_nerf.pipelines.fit.fitting.AnswerConfig", lambda: few)
    monkeypatch.setattr("mnif_nerf.pipelines.fit.answers.AnswerConfig", lambda: few)
    monkeypatch.setattr("mnif_nerf.pipelines.fit.pictures._PIXELS", 32)


def half_of_a_shape(folder: Path, model: str) -> Path:
    np.save(folder / "shape.npy", MNIFPipeline.from_pretrained(model, device="cpu").instance(0).occupancy(16))
    return folder / "shape.npy"


@pytest.mark.usefixtures("quick")
def test_answers_to_half_a_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = written(with_prior(tiny_voxel_model(8, head="logit")), tmp_path)
    path = half_of_a_shape(tmp_path, model)
    output = main(FitOptions(model, path, observed_half="front", samples=3, **FAST))  # type: ignore[arg-type]
    assert output.name == "shape-npy-front-restarts2-steps4-samples3"
    latents = read_latents(output / "answers.safetensors")
    assert latents.shape == (3, 5)
    assert len(latents.unique(dim=0)) == 3
    for k in (1, 2, 3):
        torch.testing.assert_close(read_latents(output / "answers" / f"{k}.safetensors")[0], latents[k - 1])
    report = json.loads((output / "report.json").read_text())
    assert len(report["answers"]["each"]) == 3
    assert set(report["answers"]["each"][0]) == {"iou_seen", "iou_unseen", "iou"}
    sheet = Image.open(output / "answers.png")
    assert sheet.width > 6 * 32  # observed, fit, three answers, truth, differences
    said = capsys.readouterr().out
    assert "3 answers: least" in said
    assert f"--latent-file {output / 'answers.safetensors'}" in said.replace("\n", "")
    clear_answers(output)  # which each fit begins with
    assert not (output / "answers.safetensors").exists()
    assert not (output / "answers").exists()


@pytest.mark.usefixtures("quick")
def test_answers_of_every_kind(tmp_path: Path) -> None:
    image = with_prior(tiny_image_model(8))
    pixels = np.asarray(MNIFPipeline(image).instance(0).image())  # type: ignore[attr-defined]
    surface = with_prior(tiny_surface_model(8))
    points = np.float32(np.random.default_rng(0).uniform(-0.2, 0.2, (200, 3)))
    for model, observation in ((image, pixels), (surface, points)):
        fit = fit_observation(MNIFPipeline(model), observation, FitSettings(restarts=1, steps=2, samples=2))
        assert len(fit.answers) == 2
        assert all(bool(torch.isfinite(item.latent).all()) for item in fit.answers)
    objects = MNIFPipeline(surface).fit(points, restarts=1, steps=2, samples=2)
    assert [item.name for item in objects] == ["fit-answer1", "fit-answer2"]


@pytest.mark.usefixtures("quick")
def test_answers_to_one_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are drawn as seen through the camera that the fit has found."""
    few = PoseSearchConfig(
        2, (5.0,), schedule=(Round(2, 1, 16, 4, moving=False),), last=Round(1, 1, 16, 4, moving=True)
    )
    monkeypatch.setattr("mnif_nerf.pipelines.fit.fitting._pose_config", lambda _: few)
    pipe = MNIFPipeline(with_prior(dataclasses.replace(tiny_model(8), cells=None)))
    seen = views_of(pipe, pipe.latents[0], ((20.0, 0.0),))
    assert seen.silhouettes is not None
    photo = Photo(seen.images[0], seen.silhouettes[0])
    fit = fit_observation(pipe, photo, FitSettings(restarts=1, samples=3))
    assert fit.poses is not None
    assert len(fit.answers) == 3
    found = answer_scores(fit)
    assert [set(each) for each in found["each"]] == [{"psnr_seen"}] * 3
    assert found["likeness"] is not None
    sheet = answers_sheet(fit)
    assert sheet.width > 6 * 32  # observed, fit, three answers, where they differ
    assert sheet.height > 3 * 32  # through the camera, and from both sides


@pytest.mark.usefixtures("quick")
def test_a_part_of_an_object_is_held() -> None:
    surface = MNIFPipeline(with_prior(tiny_surface_model(8)))
    evidence = held_task(surface, surface.latents[0], "left", 0.4, 0).evidence
    assert evidence is not None
    own, other = evidence.score(surface.latents[:2]).tolist()
    assert own < 1e-5, "the object explains its own part"
    assert other > 0.01
    assert isinstance(evidence, DistanceEvidence)
    assert min(float(pool.points[:, 1].min()) for pool in evidence.pools) >= 0.1 - 1e-6
    for model in (tiny_voxel_model(8), tiny_image_model(8), dataclasses.replace(tiny_model(8), cells=None)):
        pipe = MNIFPipeline(with_prior(model))
        found = redraw(pipe, pipe.latents[0], "top", 0.6, samples=2)
        assert found.shape == (2, 5)
        assert bool(torch.isfinite(found).all())
    picture = MNIFPipeline(with_prior(tiny_image_model(8)))
    for side, share, words in (
        ("front", 0.5, "a picture has left, right, top and bottom"),
        ("inside", 0.5, "`side` inside: unknown"),
        ("top", 1.5, "`share` 1.5"),
    ):
        with pytest.raises(MNIFError, match=words):
            redraw(picture, picture.latents[0], side, share)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"samples": 0}, "--samples 0: expected a whole number of at least 1"),
        ({"samples": 65}, "--samples 65.* use at most 64"),
        ({"samples": -1}, "--samples -1"),
        ({"samples": 2}, "this model has no prior yet; train one with mnif-train-prior"),
    ],
)
def test_what_cannot_be_drawn(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    model = written(tiny_voxel_model(8, head="logit"), tmp_path)
    path = half_of_a_shape(tmp_path, model)
    with pytest.raises(MNIFError) as caught:
        main(FitOptions(model, path, **{**FAST, **changes}))
    assert re.search(sentence, with_flags(str(caught.value), flag_paths(FitOptions), ARGUMENTS))


def test_an_observation_that_sees_nothing(tmp_path: Path) -> None:
    model = written(with_prior(tiny_voxel_model(8, head="logit")), tmp_path)
    cells = np.zeros((16, 16, 16), bool)
    cells[:4] = True
    np.save(tmp_path / "rear.npy", cells)
    with pytest.raises(MNIFError, match="holds no cell that is inside, so there is nothing to go by"):
        main(FitOptions(model, tmp_path / "rear.npy", observed_half="front", samples=2, **FAST))  # type: ignore[arg-type]

"""Latents of grids and pictures that no file holds: by the inner loop or by a fit, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import tiny_image_model, tiny_model, tiny_surface_model, tiny_voxel_model

from mnif_nerf.data.sampling.point_sampler import PointChoice, PointSampler
from mnif_nerf.data.stores.grid_store import store_of
from mnif_nerf.errors import MNIFError
from mnif_nerf.latents.encoding import encode
from mnif_nerf.latents.encoding_settings import EncodingSettings
from mnif_nerf.latents.meta import MetaConfig, PointObjective
from mnif_nerf.objects.image import NeuralImage
from mnif_nerf.objects.shape import NeuralShape
from mnif_nerf.pipelines.encoding import encode_grids
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.pipelines.model_folder import StoredModel, read_model, write_model
from mnif_nerf.rendering.grids import cell_centres


def solids(count: int, size: int = 8) -> list[np.ndarray]:
    centres = np.random.default_rng(0).uniform(-0.2, 0.2, (count, 3, 1, 1, 1))
    axes = (np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij")) + 0.5) / size - 0.5
    return [((axes - centre) ** 2).sum(axis=0) < 0.1 for centre in centres]


def pictures(count: int, size: int = 8, channels: int = 3) -> list[np.ndarray]:
    ramp = np.linspace(0, 255, size)[:, None, None] * np.ones((1, size, channels))
    return [(share * ramp).astype(np.uint8) for share in np.linspace(1, 0.3, count)]


def inner_loop(model: StoredModel, value: np.ndarray) -> torch.Tensor:
    """Written out with plain autograd over every cell of one grid."""
    points = cell_centres(value.shape if value.dtype == bool else value.shape[:2])[None]
    if value.dtype == bool:
        targets = 2.0 * torch.from_numpy(value).float().reshape(1, 1, -1) - 1
    else:
        targets = torch.from_numpy(value).float().reshape(1, -1, value.shape[2]).transpose(1, 2) / 127.5 - 1
    code = torch.zeros(1, model.latents.shape[1])
    for _ in range(model.adaptation["inner_steps"]):
        code = code.detach().requires_grad_(True)
        values = model.field.evaluate(code, points)
        if model.field.spec.head == "logit":
            loss = torch.nn.functional.binary_cross_entropy_with_logits(values, 0.5 * (targets + 1))
        else:
            loss = (values - targets).square().mean()
        (gradient,) = torch.autograd.grad(loss, code)
        code = code - model.adaptation["inner_lr"] * model.rates * gradient
    return code[0].detach()


def meta_learned(modality: str) -> tuple[StoredModel, list[np.ndarray]]:
    if modality == "image":
        model, values = tiny_image_model(), pictures(5)
        model.rates = torch.linspace(0.01, 0.1, 5)
        model.adaptation = {"method": "meta-learning", "inner_steps": 2, "inner_lr": 0.5, "first_order": False}
    else:
        model, values = tiny_voxel_model(head=modality), solids(5)
    return model, values


@pytest.mark.parametrize("modality", ["signed", "logit", "image"])
def test_codes_are_those_of_the_inner_loop_one_by_one(modality: str) -> None:
    model, values = meta_learned(modality)
    codes = encode_grids(model, values, points=0)
    for code, value in zip(codes, values):
        torch.testing.assert_close(code, inner_loop(model, value), atol=1e-6, rtol=1e-4)
    assert codes.std(dim=0).min() > 0, "grids that differ have codes that differ"
    torch.testing.assert_close(encode_grids(model, values[3:4], points=0)[0], codes[3], atol=1e-6, rtol=1e-4)


def test_encoding_changes_nothing_of_the_model() -> None:
    for model, values in (meta_learned("signed"), (tiny_image_model(), pictures(2))):
        before = [tensor.clone() for tensor in (*model.field.parameters(), model.latents)]
        assert not encode_grids(model, values).requires_grad
        assert all(torch.equal(a, b) for a, b in zip(before, (*model.field.parameters(), model.latents)))
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.field.parameters())


def test_points_are_chosen_as_in_training() -> None:
    """The share near the surface, and the weights that make up for it, are part of what the inner loop descends."""
    model, values = meta_learned("signed")
    model.training = {"surface_share": 0.9, "reweight": True}
    sampler = PointSampler(store_of(values, "voxel"), 1, 100, choice=PointChoice(0.9, True))
    assert model.rates is not None
    expected = encode(
        lambda chosen: PointObjective(model.field, sampler.fixed(chosen, 100)), 5, model.rates, MetaConfig(3, 1.0)
    )
    torch.testing.assert_close(encode_grids(model, values, points=100), expected, atol=1e-6, rtol=1e-4)


def test_settings_are_those_of_the_training_record() -> None:
    model = tiny_model()
    assert model.encoding == EncodingSettings()
    model.training = {"fit_steps": 7, "carve_length": 0.2, "machine": {}}
    assert model.encoding == EncodingSettings(fit_steps=7, carve_length=0.2)
    assert model.encoding.losses(5).carve_length == 0.2
    model.training = {"reweight": 3}
    with pytest.raises(MNIFError, match="training setting reweight is 3, expected a value like False"):
        assert model.encoding


@pytest.mark.parametrize("head", ["signed", "logit", "distance"])
def test_a_fit_finds_what_the_model_knows(head: str) -> None:
    """Grids that training codes themselves decode to, of a model without an inner loop, at another resolution."""
    model = tiny_voxel_model(num_instances=3, head=head)
    model.rates, model.adaptation = None, {"method": "auto-decoding"}
    model.latents *= 0.3  # random networks are no easy place to search
    pipe = MNIFPipeline(model)
    truth = [pipe.instance(k).occupancy(20) for k in range(2)]
    objects = pipe.encode(*truth)
    assert [type(item) for item in objects] == [NeuralShape] * 2
    assert [item.name for item in objects] == ["encoded000", "encoded001"]
    average = pipe.decode(model.latents.mean(dim=0)).occupancy(20)
    for item, cells in zip(objects, truth):
        rebuilt = item.occupancy(20)
        ious = [(cells & other).sum() / (cells | other).sum() for other in (rebuilt, average)]
        assert ious[0] > 0.9
        assert ious[0] > ious[1] + 0.1


def test_a_fit_of_pictures() -> None:
    model = tiny_image_model(num_instances=4, channels=1)
    model.latents *= 0.3
    pipe = MNIFPipeline(model)
    truth = np.asarray(pipe.instance(2).image(12))[..., None]
    (item,) = pipe.encode(truth)
    assert isinstance(item, NeuralImage)
    assert np.abs(np.asarray(item.image(12)).astype(int) - truth[..., 0]).mean() < 6


@pytest.mark.parametrize(
    ("modality", "values", "words"),
    [
        ("voxel", [], "nothing to encode; give at least one"),
        ("voxel", pictures(1), r"grid 0: uint8 \[8, 8, 3\]; expected bool \[X, Y, Z\]"),
        ("image", solids(1), r"grid 0: bool \[8, 8, 8\]; expected uint8 \[H, W, channels\]"),
        ("voxel", [solids(1)[0], solids(1, 6)[0]], r"grid 1: bool \[6, 6, 6\]; .*the first is \[8, 8, 8\]"),
        ("voxel", [solids(1)[0].astype(np.uint8)], r"grid 0: uint8 \[8, 8, 8\]"),
        ("voxel", [solids(1)[0][0]], r"grid 0: bool \[8, 8\]"),
        ("voxel", [solids(1)[0], np.zeros((8, 8, 8), bool)], "grid 1: every cell is empty"),
        ("voxel", [np.ones((8, 8, 8), bool)], "grid 0: every cell is full"),
        ("image", [pictures(1)[0] / 255.0], r"grid 0: float64 \[8, 8, 3\]"),
        ("image", [pictures(1)[0][..., 0]], r"grid 0: uint8 \[8, 8\]"),
        ("image", [pictures(1)[0], pictures(1, channels=1)[0]], r"grid 1: uint8 \[8, 8, 1\]"),
        ("image", pictures(2, channels=1), "pictures of 1 channels do not fit this model, which has 3"),
        ("radiance", solids(1), "this model is of radiance fields"),
        ("sdf", solids(1), "this model is of coloured solids, .*; use `fit`"),
    ],
)
def test_what_cannot_be_encoded_is_said(modality: str, values: list[np.ndarray], words: str) -> None:
    models = {
        "voxel": tiny_voxel_model, "image": tiny_image_model, "radiance": tiny_model, "sdf": tiny_surface_model
    }  # fmt: skip
    with pytest.raises(MNIFError, match=words) as caught:
        MNIFPipeline(models[modality]()).encode(*values)
    assert "\n" not in str(caught.value)


def test_an_inner_loop_that_diverges_is_told() -> None:
    model, values = meta_learned("logit")
    model.adaptation["inner_lr"] = 1e38
    with pytest.raises(MNIFError, match="the inner loop diverged"):
        encode_grids(model, values)


def test_without_training_instances_there_is_nowhere_to_start_a_fit() -> None:
    model = tiny_image_model()
    model.latents, model.names = model.latents[:0], ()
    with pytest.raises(MNIFError, match="without the latents of training instances") as caught:
        encode_grids(model, pictures(1))
    assert "\n" not in str(caught.value)


def test_a_folder_without_the_inner_loops_settings_is_refused(tmp_path: Path) -> None:
    folder = write_model(tiny_voxel_model(), tmp_path / "model")
    for settings in ({}, {"inner_steps": 3}, {"inner_steps": "many", "inner_lr": 1.0}):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(
            json.dumps({**config, "adaptation": {"method": "meta-learning", **settings}})
        )
        with pytest.raises(MNIFError, match=r"config\.json: .*inner_steps and inner_lr"):
            read_model(folder)

"""Pictures with alpha, and pictures that are not square, from the files to what is made of them."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import tiny_image_model
from tiny_runs import tiny_settings

from mnif_nerf import modalities
from mnif_nerf.cli import sample
from mnif_nerf.data.check.grids import check_grids
from mnif_nerf.data.observations.observations import Picture, as_observation
from mnif_nerf.data.readers.images import composite_white
from mnif_nerf.data.readers.picture_files import inspect_pictures, read_picture
from mnif_nerf.data.readers.pictures import PictureReader
from mnif_nerf.data.stores.grid_store import GridStore, open_grid_store
from mnif_nerf.errors import MNIFError
from mnif_nerf.evaluation.cache import Cache
from mnif_nerf.evaluation.generated import EvaluationContext
from mnif_nerf.evaluation.grid_pictures import GridPictures
from mnif_nerf.evaluation.protocols import PROTOCOLS, EvaluationProtocol
from mnif_nerf.evaluation.run import evaluate
from mnif_nerf.evaluation.target import load_target
from mnif_nerf.export.pictures import contact_sheet, save_png, to_image
from mnif_nerf.fields.compact import CompactField
from mnif_nerf.objects.image import NeuralImage
from mnif_nerf.pipelines import encoding
from mnif_nerf.pipelines.fit.fitting import FitSettings, fit_observation
from mnif_nerf.pipelines.fit.pictures import before_and_after
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.pipelines.run import TrainingRun
from mnif_nerf.rendering.alpha import over_white, premultiplied, straight
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose, pixel_rays
from mnif_nerf.rendering.plane import render_plane


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def sprite(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A blue disc, straight RGBA; the red below the transparent pixels must never be seen. Its edge is soft."""
    row, column = np.mgrid[:height, :width]
    across = np.hypot(row - height / 2 + 0.5, column - width / 2 + 0.5)
    pixels = np.zeros((height, width, 4), np.uint8)
    pixels[..., 3] = np.rint(255 * np.clip(0.3 * min(height, width) + seed % 4 - across + 0.5, 0, 1))
    pixels[..., 0] = np.where(pixels[..., 3] == 0, 255, 0)
    pixels[..., 2] = np.where(pixels[..., 3] > 0, 255 - 10 * seed, 0)
    return pixels


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_sprites(root: Path, counts: dict[str, int], height: int = 12, width: int = 16) -> Path:
    for split, count in counts.items():
        for index in range(count):
            save(root / split / f"s{index}.png", sprite(height, width, index))
    return root


# ------------------------------------------------------------------------------------------------- the arithmetic


def test_colours_times_alpha_as_pillow_has_them_and_back() -> None:
    pixels = noise(40, 40, 4)
    inner = premultiplied(pixels)
    np.testing.assert_array_equal(inner, np.asarray(Image.fromarray(pixels).convert("RGBa")))
    np.testing.assert_array_equal(premultiplied(straight(inner)), inner)
    np.testing.assert_array_equal(over_white(inner), composite_white(pixels))
    torch.testing.assert_close(over_white(torch.from_numpy(inner)).numpy(), over_white(inner))
    floats = over_white(torch.from_numpy(inner).float() / 255)
    assert (255 * floats - torch.from_numpy(over_white(inner)).float()).abs().max() < 1e-3


def test_colours_stronger_than_their_alpha_are_cut() -> None:
    """A field may say so near an edge."""
    pixels = np.array([[[200, 10, 0, 100], [90, 0, 0, 0]]], np.uint8)
    assert straight(pixels).tolist() == [[[255, 26, 0, 100], [0, 0, 0, 0]]]
    assert over_white(pixels).tolist() == [[[255, 165, 155], [255, 255, 255]]]
    assert over_white(torch.tensor([0.9, 0.0, 0.2, 0.5])).tolist() == pytest.approx([1.0, 0.5, 0.7])


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_without_alpha_pass_through(channels: int) -> None:
    pixels = noise(3, 4, channels)
    assert all(function(pixels) is pixels for function in (premultiplied, straight, over_white))


# -------------------------------------------------------------------------------------------------------- reading


def test_the_colour_of_transparent_pixels_is_never_read(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", sprite(48, 64))
    for size in ((48, 64), (12, 16)):
        pixels = read_picture(path, size, 4)
        assert pixels[..., 0].max() == 0, "red came in at the edge"
        assert (pixels[..., :3] <= pixels[..., 3:]).all()
        edge = (pixels[..., 3] > 20) & (pixels[..., 3] < 235)
        assert edge.sum() > 5
        assert np.abs(straight(pixels)[edge, 2].astype(int) - 255).max() <= 6


def test_what_is_learned_follows_from_what_is_transparent(tmp_path: Path) -> None:
    opaque, nearly = noise(8, 8, 4), noise(8, 8, 4)
    opaque[..., 3], nearly[..., 3] = 255, 253
    plain, whole, almost = (
        save(tmp_path / f"{name}.png", pixels)
        for name, pixels in (("plain", noise(8, 8, 3)), ("whole", opaque), ("almost", nearly))
    )
    see_through = save(tmp_path / "x.png", sprite(8, 8))
    assert inspect_pictures([plain, whole, almost])[1] == 3
    assert inspect_pictures([plain, see_through])[1] == 4
    assert inspect_pictures([plain, see_through], channels=3)[1] == 3
    np.testing.assert_array_equal(read_picture(see_through, 8, 3), composite_white(sprite(8, 8)))
    assert (read_picture(plain, 8, 4) == np.dstack([noise(8, 8, 3), np.full((8, 8), 255)])).all()
    grey = tmp_path / "grey.png"
    Image.fromarray(sprite(8, 8)).convert("LA").save(grey)
    assert inspect_pictures([grey, grey])[1] == 4, "grey with alpha becomes colour with alpha"
    palette = Image.fromarray(np.eye(4, dtype=np.uint8)).convert("P")
    palette.putpalette([10, 20, 30, 200, 0, 0])
    palette.save(tmp_path / "p.png", transparency=0)
    assert read_picture(tmp_path / "p.png", 4, 4)[0, :2].tolist() == [[200, 0, 0, 255], [0, 0, 0, 0]]
    with pytest.raises(MNIFError, match=r"`channels` is 2; pictures have 1 \(grey\), 3 \(colour\) or 4"):
        inspect_pictures([plain, plain], channels=2)


def test_a_folder_of_both_kinds_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_sprites(tmp_path / "mixed", {"train": 3})
    save(root / "train" / "photo.png", noise(12, 16, 3))
    store = open_grid_store(root, "train", "image", progress=False)
    assert (store.channels, store.shape) == (4, (12, 16))
    words = "1 of 4 pictures have no alpha (photo.png, ...)"
    assert capsys.readouterr().out.count(words) == 1
    lines, problems = check_grids(root, "image", progress=False)
    assert not problems
    assert "training takes 16 x 12 pixels, in colour with alpha" in lines
    assert any(words in line for line in lines)
    capsys.readouterr()
    pure = open_grid_store(write_sprites(tmp_path / "pure", {"train": 3}), "train", "image", progress=False)
    assert "alpha" not in capsys.readouterr().out
    np.testing.assert_array_equal(pure.values(1), premultiplied(sprite(12, 16, 1)))
    assert open_grid_store(root, "train", "image", channels=3, progress=False).channels == 3


def test_stores_packed_before_alpha_was_learned_are_packed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_sprites(tmp_path, {"train": 2})
    with monkeypatch.context() as before:
        before.setattr(PictureReader, "changes", ())
        before.setattr("mnif_nerf.data.readers.picture_files._is_transparent", lambda path: False)
        assert open_grid_store(root, "train", "image", progress=False).channels == 3
    assert open_grid_store(root, "train", "image", progress=False).channels == 4


# ------------------------------------------------------------------------------------------------ objects, pictures


def disc() -> NeuralImage:
    """Alpha 1 left of the middle and 0 right of it, by a steep ramp; the colour is times alpha: half of it, no red."""
    weight = torch.tensor([[0.0, 0.0], [0.0, -4.0], [0.0, -4.0], [0.0, -8.0]])
    field = CompactField([weight], [torch.tensor([-1.0, -0.5, -0.5, 0.0])], head="signed")
    return NeuralImage(torch.zeros(2), field, "disc")


def test_an_object_gives_straight_alpha_and_is_seen_on_white(tmp_path: Path) -> None:
    item = disc()
    image = item.image(9)
    assert image.mode == "RGBA"
    assert image.getpixel((0, 0)) == (0, 255, 255, 255)
    assert image.getpixel((8, 0)) == (0, 0, 0, 0)
    assert item.pixels(9)[0, 4].tolist() == [0, 64, 64, 128]
    assert image.getpixel((4, 0)) == (0, 128, 128, 128)
    seen = item.picture(9)
    assert seen.mode == "RGB"
    assert [seen.getpixel((k, 0)) for k in (0, 4, 8)] == [(0, 255, 255), (127, 191, 191), (255, 255, 255)]
    np.testing.assert_array_equal(np.asarray(to_image(image)), np.asarray(seen))
    np.testing.assert_array_equal(np.asarray(Image.open(save_png(image, tmp_path / "x.png"))), np.asarray(image))
    sheet = np.asarray(contact_sheet([[image]]))
    assert (sheet == 255).all(axis=-1).mean() > 0.5
    assert not (sheet == 0).all(axis=-1).any()


def test_a_viewer_sees_the_plane_through_transparent_parts() -> None:
    out = render_plane(disc().field, *pixel_rays(orbit_pose(0, 0), Intrinsics.default(32)))
    alpha = out["accumulation"].view(32, 32)
    assert alpha[16, 12] == 1
    assert alpha[16, 20] == 0
    torch.testing.assert_close(out["rgb"].view(32, 32, 3)[16, 20], torch.ones(3))
    torch.testing.assert_close(out["rgb"].view(32, 32, 3)[16, 10], torch.tensor([0.0, 1.0, 1.0]))


def test_sets_with_alpha_are_compared_on_white() -> None:
    kind = modalities.get("image")
    real = torch.rand(8, 3, 36, generator=torch.Generator().manual_seed(0))
    opaque = torch.cat([real, torch.ones(8, 1, 36)], dim=1)
    made, plain = opaque.flip(0) * 0.5, over_white((opaque.flip(0) * 0.5).transpose(1, 2)).transpose(1, 2)
    found = kind.set_scores(made, opaque, (4, 6, 6))
    assert found == pytest.approx(kind.set_scores(plain, real, (3, 6, 6)))


# ------------------------------------------------------------------------------------------------- fits and encoding


def wide_model(channels: int = 4) -> MNIFPipeline:
    """Pictures of 6 rows and 8 columns."""
    model = tiny_image_model(channels=channels)
    return MNIFPipeline(dataclasses.replace(model, grid={"resolution": 8, "channels": channels, "shape": [6, 8]}))


def test_straight_arrays_are_encoded_and_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = wide_model()
    given = sprite(6, 8)
    np.testing.assert_array_equal(as_observation(given).pixels, premultiplied(given))
    fit = fit_observation(pipe, given, FitSettings(restarts=1, steps=3))
    assert fit.best.pixels().shape == (6, 8, 4)
    assert not any("transparent" in note for note in fit.task.notes)
    sheet = before_and_after(fit)
    assert np.asarray(sheet)[:, :, 0].max() == 255
    stores: list[GridStore] = []
    with monkeypatch.context() as patch:
        patch.setattr(encoding, "encode_store", lambda model, store, points: stores.append(store) or model.latents[:1])
        assert pipe.encode(given)[0].image().size == (8, 6)
    np.testing.assert_array_equal(stores[0].values(0), premultiplied(given))


def test_an_opaque_picture_is_fitted_as_one_and_told(tmp_path: Path) -> None:
    opaque = sprite(6, 8)
    opaque[..., 3] = 255
    fit = fit_observation(wide_model(), opaque, FitSettings(restarts=1, steps=2))
    assert any("nothing of the picture is transparent" in note for note in fit.task.notes)
    plain = fit_observation(wide_model(3), opaque[..., :3], FitSettings(restarts=1, steps=2))
    assert not plain.task.notes
    assert isinstance(as_observation(opaque), Picture)


# --------------------------------------------------------------------------------------------- from files to samples


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on wide sprites."""
    folder = tmp_path_factory.mktemp("sprites")
    data = write_sprites(folder / "data", {"train": 8, "test": 4})
    changes: dict[str, Any] = {
        "pipeline.train_prior": True, "pipeline.prior_steps": 5, "pipeline.adaptation": "auto-decoding",
        "pipeline.model.parametrization": "scaled", "pipeline.model.width": 24, "steps_per_eval_all_images": 60,
        "pipeline.datamanager.points_per_instance": 0, "pipeline.datamanager.instances_per_step": 8,
    }  # fmt: skip
    settings = tiny_settings(data, folder, 120, method="mnif-image-lite", **changes)
    return TrainingRun(settings).train()


def test_training_sampling_and_evaluating_keep_alpha_and_proportions(run: Path, tmp_path: Path) -> None:
    options = sample.SampleOptions(str(run), num_samples=4, output=tmp_path / "samples", device="cpu")
    sample.main(options)
    files = sorted((tmp_path / "samples").rglob("sample*.png"))
    assert len(files) == 4
    for path in files:
        with Image.open(path) as picture:
            assert (picture.mode, picture.size) == ("RGBA", (16, 12))
    pipe = MNIFPipeline.from_pretrained(run, device="cpu")
    assert pipe.model.grid == {"resolution": 16, "channels": 4, "shape": [12, 16]}
    corner, middle = (np.array(pipe.instance("s1").image())[place] for place in ((0, 0), (6, 8)))
    assert corner[3] < 60
    assert middle[3] > 200
    assert middle[2] > middle[0] + 100


def test_an_evaluation_of_pictures_with_alpha(run: Path, tmp_path: Path) -> None:
    """Reconstructions are scored over all four channels, sets on white."""
    target = load_target(run, None, "cpu")
    protocol = EvaluationProtocol(
        "tiny", num_samples=4, rows=PROTOCOLS["small"].rows[:2], references=("test",), training_instances=2,
        unseen_instances=2, neighbours=1, resamples=5,
    )  # fmt: skip
    outcome = evaluate(target, protocol, tmp_path / "eval", lambda title, total: nullcontext(lambda: None))
    found = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert {"pictures", "reconstruction"} <= set(found)
    assert all(path.is_file() for path in outcome.paths)
    truth = target.training(1).value(0)
    item = target.pipe.instance(target.training(1).rows[0][1])
    error = (item.pixels().astype(float) - truth) / 255
    scores = target.kind.reconstruction_scores(item, truth, None)
    assert scores["psnr"] == pytest.approx(-10 * np.log10((error**2).mean()), abs=0.1)
    context = EvaluationContext(target, protocol, Cache(None), lambda title, total: nullcontext(lambda: None))
    pictures = GridPictures(context)
    references = pictures.references()
    for found in (references, pictures.of_row(PROTOCOLS["small"].rows[1], references)):
        assert (found.objects, found.per_object, found.size) == (4, 1, (12, 16))
        assert {tuple(found.of(number).shape) for number in range(4)} == {(1, 12, 16, 3)}
    assert all(bool((references.of(number)[:, 0, 0] == 255).all()) for number in range(4))

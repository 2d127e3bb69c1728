"""Models of voxels and of images: the folder, the pipeline, their objects and the commands, on untrained models."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_model import SolidBall, tiny_image_model, tiny_model, tiny_voxel_model

from mnif_nerf.cli import export_mesh, sample, sample_pictures
from mnif_nerf.cli.export_mesh import ExportOptions
from mnif_nerf.cli.sample import SampleOptions
from mnif_nerf.data.grid_facts import GridFacts
from mnif_nerf.data.readers.voxel_files import read_voxels
from mnif_nerf.errors import MNIFError
from mnif_nerf.objects.base import NeuralObject, object_class
from mnif_nerf.objects.image import NeuralImage
from mnif_nerf.objects.radiance import NeuralRadiance
from mnif_nerf.objects.shape import NeuralShape
from mnif_nerf.objects.solid import require_solid
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.pipelines.model_folder import StoredModel, read_model, write_model
from mnif_nerf.priors.prior import LatentPrior, PriorConfig
from mnif_nerf.rendering.occupancy import grid_points
from mnif_nerf.tensor_files import read_tensors


def _with_prior(model: StoredModel) -> StoredModel:
    model.prior = LatentPrior.fit(model.latents, PriorConfig(steps=5))
    return model


@pytest.fixture(scope="module")
def voxels() -> MNIFPipeline:
    return MNIFPipeline(_with_prior(tiny_voxel_model()))


@pytest.fixture(scope="module")
def images() -> MNIFPipeline:
    return MNIFPipeline(_with_prior(tiny_image_model()))


@pytest.fixture
def run(tmp_path: Path, request: pytest.FixtureRequest, voxels: MNIFPipeline, images: MNIFPipeline) -> Path:
    """A run folder of a model of voxels, or (as the parameter says) of images."""
    pipe = images if getattr(request, "param", "voxel") == "image" else voxels
    write_model(pipe.model, tmp_path / "run" / "model")
    return tmp_path / "run"


# --- the folder -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny_voxel_model, tiny_image_model, tiny_model])
def test_folder_keeps_what_the_model_is(make, tmp_path: Path) -> None:
    model = make()
    again = read_model(write_model(model, tmp_path / "model"))
    assert (again.modality, again.grid, again.adaptation) == (model.modality, model.grid, model.adaptation)
    assert again.field.spec == model.field.spec
    assert (again.rates is None) == (model.rates is None)
    if model.rates is not None:
        assert torch.equal(again.rates, model.rates)


def test_folders_of_the_first_version_are_radiance(tmp_path: Path) -> None:
    folder = write_model(tiny_model(), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    del config["grid"], config["adaptation"], config["field"]["head"]
    (folder / "config.json").write_text(json.dumps(config))
    pipe = MNIFPipeline.from_pretrained(folder, device="cpu")
    assert pipe.modality == "radiance"
    assert pipe.model.adaptation == {"method": "auto-decoding"}
    assert type(pipe.instance(0)) is NeuralRadiance
    assert pipe.instance(0).field.head == "radiance"


def _edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: _edit(f, modality="sound"), "'sound' is not known; this version has radiance, sdf, voxel, image"),
        (lambda f: _edit(f, modality="image"), "3 coordinates, 1 channels and head 'signed' does not fit .* 'image'"),
        (lambda f: _edit(f, grid={"resolution": 16, "channels": 3}), "expected a resolution and 1 as channels"),
        (lambda f: _edit(f, grid=[16]), "does not fit the field"),
        (lambda f: _edit(f, adaptation={"method": "guessing"}), "'guessing' is not known"),
        (lambda f: _edit(f, adaptation=7), "holds 7 where a description is expected"),
        (lambda f: (f / "rates.safetensors").unlink(), "rates.safetensors: no such file"),
        (lambda f: save_file({"rates": torch.zeros(4)}, str(f / "rates.safetensors")), "5 finite numbers"),
        (lambda f: save_file({"rates": torch.full((5,), math.nan)}, str(f / "rates.safetensors")), "infinite numbers"),
    ],
)
def test_damages_are_one_sentence(damage, words: str, tmp_path: Path) -> None:
    folder = write_model(tiny_voxel_model(), tmp_path / "model")
    damage(folder)
    with pytest.raises(MNIFError, match=words) as caught:
        read_model(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_what_does_not_fit_is_not_written(tmp_path: Path) -> None:
    for change, words in (
        ({"modality": "radiance"}, "does not fit the modality 'radiance'"),
        ({"rates": None}, "needs the learned rates"),
        ({"rates": torch.zeros(3)}, "5 finite numbers"),
    ):
        model = tiny_voxel_model()
        for name, value in change.items():
            setattr(model, name, value)
        with pytest.raises(MNIFError, match=words):
            write_model(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_model_cards_say_how_to_use_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    cards = []

    class FakeApi:
        endpoint = "https://hub.example"

        def create_repo(self, *_: object, **__: object) -> None: ...

        def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> None:
            cards.append((Path(folder_path) / "README.md").read_text())

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    for model in (tiny_voxel_model(), tiny_image_model()):
        MNIFPipeline(model).push_to_hub("someone/things")
    assert "voxel" in cards[0]
    assert ".mesh(" in cards[0]
    assert ".image()" in cards[1]
    assert "nerf\n" not in cards[1].split("---")[1].replace("mnif_nerf", "")


# --- the pipeline -----------------------------------------------------------------------------------------


def test_objects_have_the_class_of_the_modality(voxels: MNIFPipeline, images: MNIFPipeline) -> None:
    assert isinstance(voxels(1)[0], NeuralShape)
    assert isinstance(images(1)[0], NeuralImage)
    assert voxels.instance("shape_02").resolution == 16
    assert [type(item) for item in images.interpolate(0, 1, num=2)] == [NeuralImage] * 2
    assert "NeuralShape('shape_00'" in repr(voxels.instance(0))
    with pytest.raises(MNIFError, match="place: modality 'sound' is not known"):
        object_class("sound", "place")


def test_a_model_without_instances_samples_all_the_same(tmp_path: Path) -> None:
    model = _with_prior(tiny_image_model())
    model.latents, model.names = model.latents[:0], ()
    pipe = MNIFPipeline(read_model(write_model(model, tmp_path / "run" / "model")))
    assert pipe(1)[0].image().size == (8, 8)
    for call in (lambda: pipe.instance(0), lambda: pipe.instance("a"), lambda: pipe.nearest(torch.zeros(5))):
        with pytest.raises(MNIFError, match="without the latents of training instances"):
            call()
    output = sample.main(SampleOptions(str(tmp_path / "run"), num_samples=2))
    assert "nearest_training_instance" not in json.loads((output / "samples.json").read_text())["samples"][0]


@pytest.mark.parametrize("make", [tiny_voxel_model, tiny_image_model, tiny_model])
def test_saved_objects_come_back_as_what_they_were(make, tmp_path: Path) -> None:
    item = MNIFPipeline(make()).instance(1)
    again = NeuralObject.load(item.save(tmp_path / "one.safetensors"))
    assert type(again) is type(item)
    assert (again.field.head, again.resolution, again.name) == (item.field.head, item.resolution, item.name)
    assert again.picture(12).tobytes() == item.picture(12).tobytes()


def test_logits_stay_logits_in_a_saved_object(tmp_path: Path) -> None:
    item = MNIFPipeline(tiny_voxel_model(head="logit")).instance(0)
    again = NeuralShape.load(item.save(tmp_path / "one.safetensors"))
    assert again.field.head == "logit"
    assert (again.occupancy(12) == item.occupancy(12)).all()
    with pytest.raises(MNIFError, match="holds a NeuralShape, not a NeuralImage"):
        NeuralImage.load(tmp_path / "one.safetensors")


# --- solids -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["signed", "logit"])
@pytest.mark.parametrize("resolution", [16, 33, 128])
def test_voxels_equal_the_fields_sign_at_any_resolution(head: str, resolution: int) -> None:
    item = MNIFPipeline(tiny_voxel_model(head=head, resolution=16)).instance(0)
    inside = item.value(grid_points(resolution, 0.5)).view([resolution] * 3) > 0
    assert inside.any()
    assert not inside.all()
    assert (item.occupancy(resolution) == inside.numpy()).all()


def test_levels_are_occupancies(voxels: MNIFPipeline) -> None:
    item = voxels.instance(0)
    value = item.value(grid_points(20, 0.5)).view(20, 20, 20).numpy()
    for level in (0.2, 0.5, 0.9):
        ours = item.occupancy(20, level)
        away = np.abs(value - (2 * level - 1)) > 1e-4
        assert (ours == (value > 2 * level - 1))[away].all()
    assert abs(item.mesh(24, 0.2, keep="all").volume) > abs(item.mesh(24, 0.9, keep="all").volume)
    for level in (0.0, 1.0, -3.0, 22.2, math.nan):
        for call in (item.mesh, item.occupancy):
            with pytest.raises(MNIFError, match="between 0 and 1"):
                call(16, level)


class _Ball(NeuralShape):
    """A `NeuralShape` whose field is the analytic ball."""

    def __init__(self, radius: float) -> None:
        super().__init__(torch.zeros(2), SolidBall(radius), "ball")  # type: ignore[arg-type]


def test_meshes_are_closed_grey_and_y_up(tmp_path: Path) -> None:
    mesh = _Ball(0.3).mesh(48)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * 0.3**3, rel=0.01)
    assert mesh.visual.kind != "vertex"
    assert mesh.metadata["axes"] == "y-up"
    mesh.export(str(tmp_path / "ball.glb"))
    read = trimesh.load(tmp_path / "ball.glb", force="mesh")
    assert read.visual.material.name == "neutral"
    assert 100 < read.visual.material.baseColorFactor[0] < 200
    coloured = _Ball(0.3).mesh(16, colors=True)
    assert coloured.visual.kind == "vertex"


def test_a_solid_of_nothing_says_how_much_there_is() -> None:
    with pytest.raises(MNIFError, match=r"ball: nothing is inside at the level 0.5 \(its highest occupancy is 0"):
        _Ball(-0.01).mesh(16)
    assert not _Ball(-0.01).occupancy(16).any()
    assert _Ball(-0.01).render(resolution=8).getextrema() == ((255, 255),) * 3


def test_pictures_of_a_solid_are_shaded_smooth_and_white_behind() -> None:
    item = _Ball(0.3)
    picture = np.asarray(item.render(resolution=64)).astype(float).mean(axis=2)
    assert picture[0, 0] == 255
    assert picture[24, 24] > picture[42, 42] + 30  # lit from the upper left
    outline = (picture > 215) & (picture < 255)
    assert outline.sum() > 20  # pixels that are half ball, half white
    assert item.grid is item.grid
    assert [view.size for view in item.views(2, resolution=16)] == [(16, 16)] * 2
    with pytest.raises(MNIFError, match="has no pixels"):
        item.render(resolution=0)
    with pytest.raises(MNIFError, match="inside the object"):
        item.render(radius=0.3)


def test_azimuth_zero_looks_at_the_front_of_a_solid() -> None:
    model = tiny_voxel_model()
    item = NeuralShape(torch.zeros(2), SolidBall(0.1, (0.0, 0.3, 0.0)))  # type: ignore[arg-type]
    dark = np.asarray(item.render(0, 0, resolution=32)).mean(axis=2) < 250
    assert dark[:, 16:].any()  # the object's left side (+y) is on the picture's right
    assert not dark[:, :16].any()
    assert model.modality == "voxel"


def test_pictures_too_large_for_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from mnif_nerf import machine

    monkeypatch.setattr(machine, "available_memory", lambda: 4 * 320 * 30**2)
    with pytest.raises(MNIFError, match="use at most 30"):
        _Ball(0.2).render(resolution=31)
    assert _Ball(0.2).render(resolution=30).size == (30, 30)


# --- pictures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_pictures_are_the_field_at_pixel_centres(channels: int, mode: str) -> None:
    item = MNIFPipeline(tiny_image_model(channels=channels)).instance(0)
    picture = item.image()
    assert (picture.size, picture.mode) == ((8, 8), mode)
    centres = (torch.arange(8) + 0.5) / 4 - 1
    for row, column in ((0, 0), (2, 7), (6, 1)):
        raw = item.field.evaluate(torch.stack([centres[row], centres[column]])[:, None])[:, 0]
        expected = np.rint(((raw + 1) / 2).clamp(0, 1).numpy() * 255)
        assert np.abs(np.asarray(picture).reshape(8, 8, -1)[row, column] - expected).max() <= 1
    # Every third pixel of three times as many has the same centre.
    fine = np.asarray(item.image(24)).reshape(24, 24, -1)
    assert np.abs(fine[1::3, 1::3].astype(int) - np.asarray(picture).reshape(8, 8, -1)).max() <= 1
    assert item.picture(20).mode == "RGB"
    with pytest.raises(MNIFError, match="has no pixels"):
        item.image(0)


def test_pictures_have_no_methods_of_solids(images: MNIFPipeline, voxels: MNIFPipeline) -> None:
    item, shape = images.instance(0), voxels.instance(0)
    assert (item.has_surface, shape.has_surface) == (False, True)
    for name in ("render", "view", "views", "orbit", "turntable", "mesh", "occupancy", "grid"):
        assert not hasattr(item, name)
    assert require_solid(shape) is shape
    with pytest.raises(MNIFError, match=r"picture_00: a NeuralImage has no surface .* use picture\(resolution\)"):
        require_solid(item)


def test_object_files_of_a_newer_version_are_refused(tmp_path: Path) -> None:
    path = MNIFPipeline(tiny_voxel_model()).instance(0).save(tmp_path / "one.safetensors")
    tensors, metadata = read_tensors(path)
    about = {**json.loads(metadata["object"]), "novel": 1}
    save_file(tensors, str(path), {**metadata, "object": json.dumps(about)})
    with pytest.raises(MNIFError, match=r"one\.safetensors: unknown 'novel', so another version wrote it"):
        NeuralObject.load(path)


def test_object_files_without_a_shape_are_squares_or_cubes(tmp_path: Path) -> None:
    path = MNIFPipeline(tiny_image_model(channels=3)).instance(0).save(tmp_path / "one.safetensors")
    tensors, metadata = read_tensors(path)
    about = json.loads(metadata["object"])
    assert about.pop("grid") == {"resolution": 8, "channels": 3, "shape": [8, 8]}
    save_file(tensors, str(path), {**metadata, "object": json.dumps(about)})
    assert NeuralObject.load(path).facts.grid == GridFacts((8, 8), 3)


# --- the commands -----------------------------------------------------------------------------------------


def _sample(run: Path, **options: object) -> SampleOptions:
    return SampleOptions(load_config=str(run), **{"num_samples": 3, "frames": 2, "turntable_resolution": 10, **options})


def test_sample_shapes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = sample.main(_sample(run, resolution=16))
    assert {p.name for p in output.iterdir()} == {
        "contact_sheet.png",
        "turntable.mp4",
        "latents.safetensors",
        "samples.json",
        "views",
    }
    facts = json.loads((output / "samples.json").read_text())
    assert facts["views"] == 2  # from the front-left and the rear-right
    for entry in facts["samples"]:
        assert [Image.open(output / view).size for view in entry["views"]] == [(16, 16)] * 2
    assert "mnif-export-mesh" in capsys.readouterr().out


@pytest.mark.parametrize("run", ["image"], indirect=True)
def test_sample_images(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = sample.main(_sample(run, num_samples=5))
    assert {p.name for p in output.iterdir()} == {
        "contact_sheet.png",
        "latents.safetensors",
        "samples.json",
        "images",
    }
    facts = json.loads((output / "samples.json").read_text())
    assert [Image.open(output / entry["image"]).size for entry in facts["samples"]] == [(8, 8)] * 5
    assert Image.open(output / "contact_sheet.png").width > 3 * 64  # enlarged there
    assert load_file(str(output / "latents.safetensors"))["latents"].shape == (5, 5)
    printed = capsys.readouterr().out
    assert "--resolution 32" in printed
    assert "mnif-export-mesh" not in printed
    fine = sample.main(_sample(run, resolution=40, output=run / "fine"))
    assert Image.open(fine / "images" / "sample000.png").size == (40, 40)
    with pytest.raises(MNIFError, match="--views"):
        sample.main(_sample(run, views=2))


def test_sample_grey_images_stay_grey(tmp_path: Path) -> None:
    write_model(_with_prior(tiny_image_model(channels=1)), tmp_path / "run" / "model")
    output = sample.main(_sample(tmp_path / "run", num_samples=1))
    assert Image.open(output / "images" / "sample000.png").mode == "L"


def test_exported_voxels_are_the_fields_own_occupancy(run: Path) -> None:
    output = export_mesh.main(
        ExportOptions(str(run), source="training", instance=("0", "2"), format="glb,binvox,npz", resolution=40)
    )
    pipe = MNIFPipeline.from_pretrained(run, device="cpu")
    report = json.loads((output / "report.json").read_text())
    for name, entry in zip(("shape_00", "shape_02"), report["objects"]):
        inside = (pipe.instance(name).value(grid_points(40, 0.5)) > 0).view(40, 40, 40).numpy()
        read = trimesh.load(output / f"{name}.binvox")
        assert (read.matrix == inside).all()  # intersection over union of 1
        assert (read_voxels(output / f"{name}.npz") == inside).all()
        assert entry["watertight"]
        assert entry["occupied_voxels"] == inside.sum()


@pytest.mark.parametrize("level", [0.0, 1.5, -1.0])
def test_export_levels_of_voxels_are_occupancies(level: float, run: Path) -> None:
    with pytest.raises(MNIFError, match="not an occupancy"):
        export_mesh.main(ExportOptions(str(run), num_samples=1, resolution=16, level=level))
    assert not (run / "meshes").exists()


@pytest.mark.parametrize("run", ["image"], indirect=True)
def test_export_of_images_is_refused(run: Path) -> None:
    with pytest.raises(MNIFError, match="a model of pictures has no surface to export") as caught:
        export_mesh.main(ExportOptions(str(run), num_samples=1))
    assert "\n" not in str(caught.value)
    assert not (run / "meshes").exists()


def test_a_sheet_of_solids_drops_the_white_that_all_of_them_have() -> None:
    strips = [Image.fromarray(np.full((100, 20, 3), 255, np.uint8)) for _ in range(2)]
    strips[0].putpixel((3, 40), (9, 9, 9))
    strips[1].putpixel((7, 60), (254, 255, 255))
    cropped = sample_pictures._without_margins(strips, margin=5)
    assert [strip.size for strip in cropped] == [(20, 31)] * 2
    assert cropped[0].getpixel((3, 5)) == (9, 9, 9)
    white = [Image.new("RGB", (4, 4), "white")]
    assert sample_pictures._without_margins(white)[0].size == (4, 4)


def test_a_run_may_be_moved(run: Path, tmp_path: Path) -> None:
    shutil.move(run, tmp_path / "elsewhere")
    assert sample.main(_sample(tmp_path / "elsewhere", num_samples=1, resolution=8, turntable=False)).is_dir()

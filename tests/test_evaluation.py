"""mnif-eval on tiny models whose answers are known: data made by the model itself is given back without an error."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import tiny_image_model, tiny_model, tiny_voxel_model
from tiny_srn import write_tiny_srn

from mnif_nerf import modalities
from mnif_nerf.cli.evaluate import EvalOptions, main
from mnif_nerf.data.stores.scene_store import open_store
from mnif_nerf.errors import MNIFError
from mnif_nerf.evaluation.cache import Cache
from mnif_nerf.evaluation.comparison import compare_shapes, one_minus_iou_of, rows_of, shape_distances
from mnif_nerf.evaluation.generated import EvaluationContext
from mnif_nerf.evaluation.grid_pictures import GridPictures
from mnif_nerf.evaluation.labels import labels_section
from mnif_nerf.evaluation.protocols import PROTOCOLS, EvaluationProtocol, choose_protocol
from mnif_nerf.evaluation.reconstruction import reconstruct
from mnif_nerf.evaluation.run import evaluate
from mnif_nerf.evaluation.shapes import CellShapes, make_shape_set, packed, surface_points
from mnif_nerf.evaluation.target import ModelAndData, find_data, load_target
from mnif_nerf.evaluation.view_pictures import ViewPictures
from mnif_nerf.labels import Labels
from mnif_nerf.metrics.clouds import CHAMFER, EMD, ONE_MINUS_IOU
from mnif_nerf.metrics.sets import coverage
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.pipelines.model_folder import StoredModel, write_model
from mnif_nerf.priors.prior import LatentPrior, PriorConfig

TINY = EvaluationProtocol(
    "tiny",
    num_samples=8,
    rows=tuple(row for row in PROTOCOLS["small"].rows if row.name in ("training-data", "training-latents", "gaussian")),
    references=("test",),
    training_instances=4,
    unseen_instances=4,
    views_per_scene=2,
    conditioning_views=(0, 1),
    cameras=2,
    surface_points=64,
    emd_points=16,
    neighbours=1,
    resamples=10,
)


@contextmanager
def quiet(title: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar that shows nothing."""
    yield lambda: None


def with_prior(model: StoredModel) -> StoredModel:
    model.prior = LatentPrior.fit(model.latents, PriorConfig(steps=3), progress=False)
    model.training = {**model.training, "fit_steps": 20}
    return model


def write_grids(pipe: MNIFPipeline, root: Path, unseen: int = 8) -> Path:
    """The model's own instances as the training split, and as many random others as the test split."""
    others = torch.randn(unseen, pipe.latents.shape[1], generator=torch.Generator().manual_seed(99))
    parts = {"train": list(zip(pipe.names, pipe.latents)), "test": [(f"t{k}", z) for k, z in enumerate(others)]}
    for split, items in parts.items():
        (root / split).mkdir(parents=True)
        for name, latent in items:
            item: Any = pipe.decode(latent)
            if pipe.modality == "voxel":
                np.save(root / split / f"{name}.npy", item.occupancy(pipe.model.grid["resolution"]))
            else:
                item.image(pipe.model.grid["resolution"]).save(root / split / f"{name}.png")
    return root


@pytest.fixture(scope="module")
def voxels(tmp_path_factory: pytest.TempPathFactory) -> ModelAndData:
    pipe = MNIFPipeline(with_prior(tiny_voxel_model(num_instances=8, resolution=12)))
    return ModelAndData(pipe, write_grids(pipe, tmp_path_factory.mktemp("voxels")))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ModelAndData:
    pipe = MNIFPipeline(with_prior(tiny_image_model(num_instances=8)))
    return ModelAndData(pipe, write_grids(pipe, tmp_path_factory.mktemp("images")))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> ModelAndData:
    root = write_tiny_srn(
        tmp_path_factory.mktemp("srn"), scenes=4, views=4, heldout_views=2, test_scenes=4, resolution=16
    )
    model = tiny_model(num_instances=4)
    model.names = open_store(root, "train", progress=False).names
    return ModelAndData(MNIFPipeline(with_prior(model)), root)


def context_of(target: ModelAndData, cache: Path | None = None, **changes: Any) -> EvaluationContext:
    return EvaluationContext(target, dataclasses.replace(TINY, **changes), Cache(cache), quiet)


def test_a_model_gives_back_its_own_shapes_and_pictures(voxels: ModelAndData, images: ModelAndData) -> None:
    for target, metric, best in ((voxels, "iou", 1.0), (images, "psnr", 40.0)):
        training = reconstruct(context_of(target))[0]
        assert training.name == "training"
        assert len(training.scores) == 4
        assert min(score[metric] for score in training.scores) >= best
        assert training.table()[metric]["p5"] <= training.table()[metric]["p95"]


def test_samples_of_classes_are_judged_by_their_cells(voxels: ModelAndData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mnif_nerf.evaluation.labels.LEAST_REFERENCES", 3)
    model = dataclasses.replace(voxels.pipe.model, labels=Labels({"kind": ("left", "right") * 4}))
    config = PriorConfig(steps=5, width=16, blocks=1)
    model.prior = LatentPrior.fit(model.latents, config, progress=False, labels=model.labels)
    section = labels_section(context_of(ModelAndData(MNIFPipeline(model), voxels.data)))
    assert section is not None
    assert section.facts["kind"]["real"] == {"left": 4, "right": 4}
    assert all(0 <= line["share"] <= 1 for line in section.facts["kind"]["lines"])


def test_worst_reconstructions_come_first(voxels: ModelAndData) -> None:
    unseen = reconstruct(context_of(voxels))[1]
    named = dict(zip(unseen.names, (score["iou"] for score in unseen.scores)))
    shown = [named[name] for name, _ in unseen.worst]
    assert shown == sorted(named.values())[: len(shown)]
    assert shown[0] < 1


def test_lines_that_are_known(voxels: ModelAndData) -> None:
    """Training latents decode to the training data, so both lines are equal; their distance to training data is 0."""
    comparison = compare_shapes(context_of(voxels))
    lines = {line.row.name: line for line in comparison.lines}
    assert list(lines) == ["training-data", "training-latents", "gaussian"]
    for name in (f"{metric}/{score}" for metric in (CHAMFER, EMD, ONE_MINUS_IOU) for score in ("mmd", "cov", "1nna")):
        assert lines["training-data"].scores[name][0] == pytest.approx(lines["training-latents"].scores[name][0])
    assert "novelty_ratio" not in lines["training-data"].scores
    assert lines["gaussian"].scores["novelty_ratio"][0] > 0
    sample, training, distance = lines["gaussian"].pairs[0]
    cells = [voxels.pipe.sample_latents(8, 0, "gaussian")[sample], voxels.pipe.latents[training]]
    first, second = (voxels.pipe.decode(z).occupancy(12) for z in cells)
    assert distance == pytest.approx(1 - (first & second).sum() / (first | second).sum(), abs=1e-6)


def test_empty_shapes_are_counted_and_cover_nothing(voxels: ModelAndData) -> None:
    full = voxels.references(("test",), 4).values()
    made, real = (
        make_shape_set(packed(CellShapes(32).of_data(cells, k)) for k, cells in enumerate([first, *full[1:]]))
        for first in (np.zeros_like(full[0]), full[0])
    )
    assert made.empty.tolist() == [True, False, False, False]
    for metric, worst in ((CHAMFER, 6.0), (EMD, 3**0.5), (ONE_MINUS_IOU, 1.0)):
        matrix = shape_distances(context_of(voxels, emd_points=16), made, real, metric, "")
        assert matrix[0] == pytest.approx(np.full(4, worst))
        assert matrix[1:].max() < worst
    assert coverage(matrix[1:]) == 0.75
    assert shape_distances(context_of(voxels), made, made, CHAMFER, "")[0, 0] == 0
    assert one_minus_iou_of(made, made)[0, 0] == 0


def test_points_lie_on_the_surface_of_the_cells() -> None:
    axis = (np.arange(32) + 0.5) / 32 - 0.5
    radius = np.linalg.norm(np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1), axis=-1)
    points = surface_points(radius < 0.3, 500, seed=1)
    assert np.abs(np.linalg.norm(points, axis=1) - 0.3).max() < 1.5 / 32
    assert np.array_equal(points, surface_points(radius < 0.3, 500, seed=1))
    assert not np.array_equal(points, surface_points(radius < 0.3, 500, seed=2))


@pytest.mark.parametrize("kind", ["voxels", "images", "scenes"])
def test_the_same_seed_gives_the_same_file(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """With a cache, from the cache, and without one."""
    target = request.getfixturevalue(kind)
    cache = tmp_path / "cache"
    contents = []
    for name, kept in (("a", cache), ("b", cache), ("c", None)):
        outcome = evaluate(target, TINY, tmp_path / name, quiet, kept)
        contents.append((tmp_path / name / "metrics.json").read_bytes())
        assert all(path.is_file() for path in outcome.paths)
    assert contents[0] == contents[1] == contents[2]
    content = json.loads(contents[0], parse_constant=pytest.fail)  # NaN is no JSON
    expected = {"voxels": ["shapes"], "images": ["pictures"], "scenes": ["pictures"]}[kind]
    assert [key for key in ("shapes", "pictures") if key in content] == expected
    assert content["protocol"]["num_samples"] == 8
    page = (tmp_path / "a" / "report.html").read_text()
    assert "Reconstruction" in page
    for picture in (tmp_path / "a").glob("*.png"):
        assert Image.open(picture).size[0] > 50
    other = evaluate(target, dataclasses.replace(TINY, seed=1), tmp_path / "d", quiet, cache)
    assert other.paths[-1].read_bytes() != contents[0]


def test_features_of_another_network_in_the_cache(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    made = {"features": np.ones((2, 3))}
    cache.get("features", {"network": "one", "pictures": 1}, lambda: made)
    cache.get("features", {"network": "two", "pictures": 1}, lambda: {"features": np.zeros((2, 3))})
    assert cache.get("features", {"network": "one", "pictures": 1}, dict)["features"].sum() == 6
    one, two = sorted(tmp_path.iterdir(), key=lambda path: "two" in path.read_bytes().decode("latin1"))
    one.write_bytes(two.read_bytes())
    with pytest.raises(MNIFError, match=r"network 'two', expected 'one'.*remove it"):
        cache.get("features", {"network": "one", "pictures": 1}, dict)


def test_references_that_are_the_training_set_are_warned_of(voxels: ModelAndData, tmp_path: Path) -> None:
    protocol = dataclasses.replace(TINY, references=("train",), training_instances=1, unseen_instances=1)
    outcome = evaluate(voxels, protocol, tmp_path / "out", quiet)
    assert any("training data itself" in note for note in outcome.notes)
    assert "training data itself" in (tmp_path / "out" / "report.md").read_text()


def test_a_model_without_a_prior(voxels: ModelAndData, tmp_path: Path) -> None:
    bare = ModelAndData(MNIFPipeline(dataclasses.replace(voxels.pipe.model, prior=None)), voxels.data)
    protocol = dataclasses.replace(TINY, training_instances=1, unseen_instances=1)
    outcome = evaluate(bare, protocol, tmp_path / "out", quiet)
    assert any("mnif-train-prior" in note for note in outcome.notes)
    lines = json.loads((tmp_path / "out" / "metrics.json").read_text())["shapes"]["lines"]
    assert [line["row"] for line in lines] == ["training-data", "training-latents"]


def test_the_command(
    voxels: ModelAndData, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"training_instances": 2, "unseen_instances": 2, "surface_points": 64, "emd_points": 16, "resamples": 20}
    monkeypatch.setitem(PROTOCOLS, "small", dataclasses.replace(PROTOCOLS["small"], **sizes))
    folder = write_model(voxels.pipe.model, tmp_path / "run" / "model")
    options = EvalOptions(folder, data=voxels.data, num_samples=4, device="cpu")
    output = main(options)
    assert output == tmp_path / "run" / "evaluation" / "small-seed0-4"
    assert "next: mnif-diagnose" in capsys.readouterr().out
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(MNIFError, match=r"holds other files \(thesis.txt\)"):
        main(dataclasses.replace(options, output=tmp_path / "full"))
    for names in ("nonsense", "test,nonsense"):
        with pytest.raises(MNIFError, match=r"`references` nonsense: .* has no such split; use test or train\.$"):
            main(dataclasses.replace(options, references=names, output=tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_data_that_does_not_belong_to_the_model(voxels: ModelAndData, images: ModelAndData, tmp_path: Path) -> None:
    with pytest.raises(MNIFError, match="can be read as images"):
        ModelAndData(images.pipe, voxels.data)
    finer = write_grids(MNIFPipeline(tiny_voxel_model(num_instances=8, resolution=18)), tmp_path / "finer")
    with pytest.raises(MNIFError, match="12"):
        ModelAndData(voxels.pipe, finer)
    model = dataclasses.replace(voxels.pipe.model, names=tuple(f"other{k}" for k in range(8)))
    with pytest.raises(MNIFError, match=r"8 of the 8 instances .*`data`"):
        ModelAndData(MNIFPipeline(model), voxels.data)


def test_protocols() -> None:
    with pytest.raises(MNIFError, match="protocol 'huge' is not known; choose one of small, standard, paper"):
        choose_protocol("huge", modalities.get("voxel"), None, 0)
    with pytest.raises(MNIFError, match=r"`num_samples` 3 is too few .* at least 4"):
        choose_protocol("small", modalities.get("voxel"), 3, 0)
    with pytest.raises(MNIFError, match="`seed` -1"):
        choose_protocol("small", modalities.get("voxel"), None, -1)
    paper = choose_protocol("paper", modalities.get("radiance"), None, 0)
    assert (paper.num_samples, paper.cameras, paper.references) == (704, 251, ("test",))
    assert choose_protocol("paper", modalities.get("voxel"), None, 0).num_samples == 8762
    assert choose_protocol("paper", modalities.get("image"), None, 0).references == ("train",)


def test_the_data_folder_is_read_from_config_yml(tmp_path: Path) -> None:
    run, data = tmp_path / "run", tmp_path / "cars"
    write_model(tiny_model(), run / "model")
    data.mkdir()
    config = run / "config.yml"
    with pytest.raises(MNIFError, match=r"no config.yml beside the model.*`data`"):
        find_data(run)
    parts = "".join(f"- {part}\n" for part in data.parts)
    config.write_text(f"!!python/object:some.module.Config\ndata: !!python/object/apply:pathlib.PosixPath\n{parts}")
    assert find_data(run) == find_data(config) == find_data(run / "model") == data
    data.rmdir()
    with pytest.raises(MNIFError, match=r"no such folder \(named by .*config.yml\)"):
        find_data(run)
    config.write_text("!!python/object:some.module.Config\nother: 1\n")
    with pytest.raises(MNIFError, match="does not say where the data is"):
        find_data(run)


def test_views_are_held_out_as_in_training(tmp_path: Path) -> None:
    """What the model folder says, else what config.yml says, else the usual number and a note."""
    everything = write_tiny_srn(tmp_path / "tiny", scenes=2, views=6, heldout_views=1, test_scenes=1, resolution=8)
    data = tmp_path / "data"
    shutil.copytree(everything / "cars_train", data / "cars_train")
    model = tiny_model(num_instances=2)
    model.names = open_store(data, "train", progress=False).names
    run = tmp_path / "run"
    write_model(model, run / "model")
    target = load_target(run / "model", data, "cpu")
    assert target.heldout_views == 2
    assert "does not say how many views training held out" in target.notes[0]
    config = "!!python/object:a.Config\npipeline: !!python/object:a.P\n  datamanager: !!python/object:a.D\n"
    (run / "config.yml").write_text(f"{config}    dataparser: !!python/object:a.S\n      heldout_views_per_scene: 4\n")
    target = load_target(run, data, "cpu")
    assert target.heldout_views == 4
    assert target.notes == []
    model.training = {"heldout_views_per_scene": 0}
    write_model(model, run / "model")
    target = load_target(run, data, "cpu")
    assert target.heldout_views == 0
    with pytest.raises(MNIFError, match="no view is held out"):
        reconstruct(context_of(target))


def test_pictures_from_other_cameras_are_no_yardstick(
    scenes: ModelAndData, images: ModelAndData, tmp_path: Path
) -> None:
    """The tiny scenes' held-out views are new ones; where they are the references themselves, the line stays."""
    assert GridPictures(context_of(images)).training_is_yardstick()
    context = context_of(scenes)
    held = scenes.scenes("train_val")
    test = scenes.scenes("test")
    near = np.linalg.norm(held.poses[:, None, :3, 3] - test.poses[None, :, :3, 3], axis=-1).min(axis=0)
    assert ViewPictures(context).training_is_yardstick() == bool(np.median(near) < 0.02 * 1.3)
    assert ViewPictures(context_of(scenes, references=("train_val",))).training_is_yardstick()


def test_a_flow_prior_is_sampled_by_its_own_sampler(voxels: ModelAndData) -> None:
    model = dataclasses.replace(voxels.pipe.model)
    model.prior = LatentPrior.fit(model.latents, PriorConfig(steps=3, prediction="flow"), progress=False)
    context = context_of(ModelAndData(MNIFPipeline(model), voxels.data), rows=PROTOCOLS["small"].rows)
    assert [row.name for row in rows_of(context)] == [
        "training-data", "training-latents", "gaussian", "interpolation", "flow-heun",
    ]  # fmt: skip
    assert [row.name for row in rows_of(context_of(voxels, rows=PROTOCOLS["small"].rows))][-1] == "ddpm-1000"
    assert compare_shapes(context).lines[-1].pairs


def test_too_few_references_leave_the_comparisons_out(tmp_path: Path) -> None:
    pipe = MNIFPipeline(with_prior(tiny_voxel_model(num_instances=8, resolution=12)))
    target = ModelAndData(pipe, write_grids(pipe, tmp_path / "data", unseen=3))
    outcome = evaluate(target, TINY, tmp_path / "out", quiet)
    assert any("Only 3 instances" in note and "need 4" in note for note in outcome.notes)
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert "shapes" not in content
    assert content["reconstruction"]["unseen"]["summary"]["iou"]["mean"] > 0

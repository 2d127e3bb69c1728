"""mnif-eval on models of signed distance: a tiny model against points of its own surfaces, whose scores are known."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import Rounded, tiny_surface_model

from mnif_nerf.cli.evaluate import EvalOptions, main
from mnif_nerf.data.geometry.point_cells import cells_of_points
from mnif_nerf.data.geometry.surface_points import PointCounts, SurfacePoints, from_lattice, to_lattice
from mnif_nerf.data.stores.surface_pack import encode, write_part
from mnif_nerf.data.stores.surface_store import write_store
from mnif_nerf.errors import MNIFError
from mnif_nerf.evaluation.cache import Cache, digest_of_store
from mnif_nerf.evaluation.comparison import compare_shapes
from mnif_nerf.evaluation.generated import EvaluationContext
from mnif_nerf.evaluation.labels import labels_section
from mnif_nerf.evaluation.protocols import PROTOCOLS, EvaluationProtocol
from mnif_nerf.evaluation.reconstruction import reconstruct
from mnif_nerf.evaluation.run import evaluate
from mnif_nerf.evaluation.surface_pictures import SurfacePictures
from mnif_nerf.evaluation.surface_shapes import SurfaceShapes
from mnif_nerf.evaluation.target import ModelAndData
from mnif_nerf.export.surface_samples import surface_samples
from mnif_nerf.fields.distance import DistanceField
from mnif_nerf.labels import Labels
from mnif_nerf.metrics.clouds import CHAMFER, ONE_MINUS_IOU
from mnif_nerf.metrics.surfaces import surface_agreement
from mnif_nerf.modalities import get
from mnif_nerf.modalities.sdf import Sdf
from mnif_nerf.objects.surface import NeuralSurface
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.pipelines.model_folder import write_model
from mnif_nerf.priors.prior import LatentPrior, PriorConfig

TINY = EvaluationProtocol(
    "tiny",
    num_samples=6,
    rows=tuple(row for row in PROTOCOLS["small"].rows if row.name in ("training-data", "training-latents", "gaussian")),
    training_instances=3,
    unseen_instances=2,
    surface_points=64,
    emd_points=0,
    neighbours=1,
    resamples=10,
)
COUNTS = PointCounts(600, 100, 300, 200)


@contextmanager
def quiet(title: str, total: int) -> Iterator[Callable[[], None]]:
    yield lambda: None


def points_of(field: DistanceField, seed: int) -> SurfacePoints:
    """What a data set would hold of a field's surface; distances are never too long, as those of meshes."""
    generator = np.random.default_rng(seed)
    surface = surface_samples(field, COUNTS.surface, generator, 24)
    assert surface is not None
    around = surface.points[generator.integers(COUNTS.surface, size=COUNTS.wide + COUNTS.near)]
    around = around + generator.normal(0, 0.02, around.shape)
    anywhere = generator.uniform(-0.5, 0.5, (COUNTS.uniform, 3))
    points = from_lattice(to_lattice(np.concatenate([anywhere, around, surface.points])))
    with torch.no_grad():
        distance = 0.1 * field.distance(torch.from_numpy(points)).numpy()
        color = field.color(torch.from_numpy(points)).numpy()
    distance[-COUNTS.surface :] = 0
    kind = np.repeat(np.arange(4, dtype=np.uint8), COUNTS.by_kind)
    normals = np.full((len(points), 3), np.nan, np.float32)
    normals[-COUNTS.surface :] = surface.normals
    return SurfacePoints(points, distance, color, kind, normals)


def write_surfaces(pipe: MNIFPipeline, root: Path, unseen: int = 6) -> Path:
    """Points of the model's own instances as the training split, and of random other ones as the test split."""
    others = torch.randn(unseen, pipe.latents.shape[1], generator=torch.Generator().manual_seed(99))
    splits = {"train": zip(pipe.names, pipe.latents), "test": ((f"t{k}", z) for k, z in enumerate(others))}
    for split, items in splits.items():
        parts = {}
        for seed, (name, latent) in enumerate(items):
            item = pipe.decode(latent)
            assert isinstance(item, NeuralSurface)
            parts[name] = root / f"{split}-{name}.npz"
            write_part(parts[name], encode(points_of(item.solid, seed)))
        write_store(root / "points" / split, split, parts, COUNTS, True)
    return root


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mnif_nerf.evaluation.surface_shapes.RESOLUTION", 16)
    monkeypatch.setattr("mnif_nerf.modalities.sdf._SAMPLED_CELLS", 24)
    monkeypatch.setattr("mnif_nerf.evaluation.reconstruction._SIZE", 16)
    # Rays step many times through a field that nobody trained.
    monkeypatch.setattr(Sdf, "portrait", lambda self, item, pixels: Image.new("RGB", (pixels, pixels)))
    monkeypatch.setattr("mnif_nerf.evaluation.report._SHOWN_PIXELS", 16)
    monkeypatch.setattr("mnif_nerf.evaluation.surface_shapes._PIXELS", 32)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> ModelAndData:
    model = tiny_surface_model(num_instances=6)
    model.prior = LatentPrior.fit(model.latents, PriorConfig(steps=3), progress=False)
    model.training = {"fit_steps": 20, "fit_points": 64}
    pipe = MNIFPipeline(model)
    return ModelAndData(pipe, write_surfaces(pipe, tmp_path_factory.mktemp("surfaces")))


def context_of(target: ModelAndData, cache: Path | None = None, **changes: Any) -> EvaluationContext:
    return EvaluationContext(target, dataclasses.replace(TINY, **changes), Cache(cache), quiet)


@pytest.mark.parametrize(("half", "radius", "least"), [((0.0, 0.0, 0.0), 0.3, 0.99), ((0.2, 0.25, 0.004), 0.004, 0.94)])
def test_cells_of_points_are_those_of_the_solid(half: tuple[float, float, float], radius: float, least: float) -> None:
    """A ball, and a plate much thinner than a cell, from 8,000 points."""
    field = DistanceField(Rounded(half, radius))
    generator = np.random.default_rng(0)
    surface = surface_samples(field, 4000, generator, 128)
    assert surface is not None
    near = surface.points + generator.normal(0, 0.01, surface.points.shape).astype(np.float32)
    points = np.concatenate([generator.uniform(-0.5, 0.5, (4000, 3)).astype(np.float32), near])
    distance = field.distance(torch.from_numpy(points)).numpy()
    kind, nothing = np.zeros(len(points), np.uint8), np.zeros_like(points)
    cells = cells_of_points(SurfacePoints(points, distance, None, kind, nothing), 31)
    axis = (np.arange(31) + 0.5) / 31 - 0.5
    centres = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    truth = (field.distance(torch.from_numpy(centres).float()).numpy() < 0).reshape(cells.shape)
    assert truth.any()
    assert (cells & truth).sum() / (cells | truth).sum() > least


def test_samples_lie_evenly_on_the_surface_with_its_normals_and_colours() -> None:
    field = DistanceField(Rounded(radius=0.3))
    found = surface_samples(field, 2000, np.random.default_rng(0), 32)
    assert found is not None
    assert np.abs(np.linalg.norm(found.points, axis=1) - 0.3).max() < 1e-4
    assert (found.normals * found.points).sum(axis=1).min() > 0.299
    assert np.abs(found.points.mean(axis=0)).max() < 0.02
    assert found.color == pytest.approx(field.color(torch.from_numpy(found.points)).numpy(), abs=1e-5)
    assert surface_samples(DistanceField(Rounded(radius=-0.02)), 10, np.random.default_rng(0), 16) is None


def test_agreement_of_two_balls() -> None:
    balls = [
        surface_samples(DistanceField(Rounded(radius=radius)), 3000, np.random.default_rng(seed), 32)
        for radius, seed in ((0.30, 0), (0.30, 1), (0.32, 2))
    ]
    first, again, larger = ((ball.points, ball.normals) for ball in balls if ball is not None)
    same, apart = surface_agreement(*first, *again), surface_agreement(*first, *larger)
    assert same[0] < 3e-4
    assert apart[0] == pytest.approx(same[0] + 2 * 0.02**2, rel=0.15)
    assert same[1] > 0.995
    turned = surface_agreement(first[0], first[1][:, [1, 2, 0]], *again)[1]
    assert turned < 0.6


def test_a_model_gives_back_its_own_surfaces(target: ModelAndData) -> None:
    training, unseen = reconstruct(context_of(target))
    for score in training.scores:
        assert score["iou"] > 0.99
        assert score["color"] > 35
        assert score["chamfer"] == pytest.approx(score["chamfer of the data"], rel=0.4)
        assert score["normals"] == pytest.approx(score["normals of the data"], abs=0.05)
    assert "points of their meshes" in training.about
    assert len(unseen.scores) == 2
    assert len(training.worst) == 3


def test_training_latents_stand_where_the_training_data_does(target: ModelAndData) -> None:
    comparison = compare_shapes(context_of(target))
    lines = {line.row.name: line for line in comparison.lines}
    assert list(lines) == ["training-data", "training-latents", "gaussian"]
    for name in (f"{metric}/mmd" for metric in (CHAMFER, ONE_MINUS_IOU)):
        found = [lines[row].scores[name][0] for row in ("training-data", "training-latents")]
        assert found[0] == pytest.approx(found[1], rel=0.1)
    assert lines["gaussian"].scores["novelty_ratio"][0] > 0
    source = SurfacePictures(context_of(target))
    made, given = (
        np.stack([source.of_row(row, source.references()).of(k).flatten().double() for k in range(6)])
        for row in sorted(TINY.rows, key=lambda row: row.name, reverse=True)[:2]
    )
    apart = ((made[:, None] - given[None]) ** 2).mean(axis=2)
    assert apart.argmin(axis=1).tolist() == list(range(6)), "each object looks like its own instance"


def test_an_object_without_a_surface_is_empty() -> None:
    item = NeuralSurface.__new__(NeuralSurface)
    item.solid = DistanceField(Rounded(radius=-0.02))
    item.field, item.facts = item.solid.compact, MNIFPipeline(tiny_surface_model()).instance(0).facts  # type: ignore[assignment]
    shape = SurfaceShapes(get("sdf"), 8, 50).of_object(item, 0)
    assert not shape.cells.any()
    assert np.isnan(shape.points).all()
    assert shape.pictures is not None
    assert shape.pictures.min() == 255


def test_the_same_seed_gives_the_same_file(target: ModelAndData, tmp_path: Path) -> None:
    """From a cache and without one; the data's 200 points on each surface are said to be few."""
    protocol = dataclasses.replace(TINY, surface_points=4096, training_instances=1, unseen_instances=1)
    contents = []
    for name, kept in (("a", tmp_path / "cache"), ("b", None)):
        outcome = evaluate(target, protocol, tmp_path / name, quiet, kept)
        contents.append((tmp_path / name / "metrics.json").read_bytes())
    assert contents[0] == contents[1]
    assert any("only 200 points on each surface" in note for note in outcome.notes)
    content = json.loads(contents[0], parse_constant=pytest.fail)
    assert {"reconstruction", "shapes", "pictures", "integrity"} <= set(content)
    assert [line["row"] for line in content["integrity"]["lines"]] == ["training-latents"]
    assert content["integrity"]["lines"][0]["count"] == 6
    assert content["protocol"]["surface_points"] == 200
    assert "spread evenly over the surface" in (tmp_path / "a" / "report.md").read_text()


def test_the_command_and_data_of_other_channels(
    target: ModelAndData, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"training_instances": 1, "unseen_instances": 1, "surface_points": 64, "emd_points": 8}
    sizes["rows"] = TINY.rows[:1]
    monkeypatch.setitem(PROTOCOLS, "small", dataclasses.replace(PROTOCOLS["small"], **sizes))
    folder = write_model(target.pipe.model, tmp_path / "run" / "model")
    main(EvalOptions(folder, data=target.data, num_samples=4, device="cpu"))
    assert "next: mnif-diagnose" in capsys.readouterr().out
    grey = MNIFPipeline(tiny_surface_model(num_instances=6, channels=1))
    with pytest.raises(MNIFError, match="its objects have channels 4, the model was trained on 1"):
        ModelAndData(grey, target.data)


def test_stores_of_other_points_have_other_digests(target: ModelAndData, tmp_path: Path) -> None:
    folder = target.data / "points" / "train"
    other = shutil.copytree(folder, tmp_path / "train")
    assert digest_of_store(folder) == digest_of_store(other)
    content = bytearray((other / "distance.array").read_bytes())
    content[-1] ^= 1
    (other / "distance.array").write_bytes(content)
    assert digest_of_store(folder) != digest_of_store(other)


def test_samples_that_were_asked_for_by_label(
    target: ModelAndData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mnif_nerf.evaluation.labels.LEAST_REFERENCES", 3)
    columns = {"kind": ("left", "right") * 3, "size": tuple(float(k) for k in range(6))}
    model = dataclasses.replace(target.pipe.model, labels=Labels(columns))
    config = PriorConfig(steps=5, width=16, blocks=1)
    model.prior = LatentPrior.fit(model.latents, config, progress=False, labels=model.labels)
    context = EvaluationContext(ModelAndData(MNIFPipeline(model), target.data), TINY, Cache(tmp_path), quiet)
    section = labels_section(context)
    assert section is not None
    found = section.facts["kind"]
    assert found["real"] == {"left": 3, "right": 3}
    assert [(line["name"], line["count"]) for line in found["lines"]] == [("left", 6), ("right", 6)]
    assert all(0 <= line["share"] <= 1 and line["diversity"] > 0 for line in found["lines"])
    assert set(found["lines"][0]["scores"]) >= {"mmd", "cov", "1nna"}
    assert labels_section(EvaluationContext(target, TINY, Cache(tmp_path), quiet)) is None  # no labels
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    import labels as benchmark

    folder = write_model(model, tmp_path / "model")
    sizes = {"decoded": 2, "latents": 4, "guidances": (0.0, 2.0), "cache": tmp_path / "cache"}
    results = benchmark.main(benchmark.Config(folder, target.data, **sizes))
    assert [row["guidance"] for row in results["kind"]["latents"]] == [0.0, 2.0]
    assert list(results["size"]["latents"][1]) == [
        *("guidance", "asked 0.5", "asked 2.5", "asked 4.5", "correlation on real"),
    ]
    assert results["kind"]["decoded"][1]["share"] in (0, 0.25, 0.5, 0.75, 1)
    assert "Machine:" in capsys.readouterr().out

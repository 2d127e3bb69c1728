"""mnif-diagnose on tiny models of every modality: its numbers, its files, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import tiny_image_model, tiny_model, tiny_surface_model, tiny_voxel_model

from mnif_nerf.cli import diagnose
from mnif_nerf.cli.diagnose import DiagnoseOptions
from mnif_nerf.diagnosis import plots
from mnif_nerf.diagnosis.bases import data_points, diagnose_bases
from mnif_nerf.diagnosis.report import smoothness_section
from mnif_nerf.diagnosis.smoothness import (
    SmoothnessSettings,
    diagnose_smoothness,
    draw_pairs,
    measure,
    output_map,
    quartiles,
    smoothness_steps,
    whitened_space,
)
from mnif_nerf.errors import MNIFError
from mnif_nerf.export.document import rounded
from mnif_nerf.export.figures import save_figure
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.pipelines.model_folder import StoredModel, write_model
from mnif_nerf.priors.prior import LatentPrior, PriorConfig

MODELS = {"radiance": tiny_model, "voxel": tiny_voxel_model, "image": tiny_image_model}
FIGURES = ("bases_spectra", "bases_use", "bases_correlation", "smoothness_lipschitz", "smoothness_paths")
FILES = {f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")}
FILES |= {"smoothness_strips.png", "report.md", "report.html", "diagnosis.json"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model folder with a (barely trained) prior per modality; tests leave them as they are."""
    root = tmp_path_factory.mktemp("models")
    for modality, make in MODELS.items():
        model = make(num_instances=8)
        model.prior = LatentPrior.fit(model.latents, PriorConfig(steps=2), progress=False)
        write_model(model, root / modality / "model")
    return {modality: root / modality / "model" for modality in MODELS}


def options(folder: Path, output: Path | None, **changes: object) -> DiagnoseOptions:
    small = {"num_pairs": 1, "num_samples": 5, "points": 40, "resolution": 8, "device": "cpu"}
    return DiagnoseOptions(load_config=str(folder), output=output, **{**small, **changes})


@pytest.fixture(scope="module")
def outputs(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the command writes of each of them."""
    root = tmp_path_factory.mktemp("outputs")
    return {modality: diagnose.main(options(folder, root / modality)) for modality, folder in folders.items()}


def pipeline(model: StoredModel) -> MNIFPipeline:
    return MNIFPipeline(model)


# --- the command ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", MODELS)
def test_the_command_writes_everything(outputs: dict[str, Path], modality: str) -> None:
    output = outputs[modality]
    assert {path.name for path in output.iterdir()} == FILES
    facts = json.loads((output / "diagnosis.json").read_text())
    assert (facts["model"]["modality"], facts["settings"]["seed"], facts["settings"]["points"]) == (modality, 0, 40)
    assert facts["machine"]["cores"] >= 1
    assert set(facts["smoothness"]["paths"]) == {"training", "samples", "training to sample"}
    assert set(facts["smoothness"]["instances"]) == {"training", "samples"}
    assert ("loose" in facts["smoothness"]["instances"]["samples"]) == (modality != "image")
    assert facts["smoothness"]["paths"]["samples"]["detour"]["q1"] >= 1.0
    report = (output / "report.md").read_text()
    for name in (*FIGURES, "smoothness_strips"):
        assert f"({name}.png)" in report
        assert Image.open(output / f"{name}.png").size[0] > 100
    assert "No prior" not in report


def test_the_same_seed_gives_the_same_files(folders: dict[str, Path], outputs: dict[str, Path], tmp_path: Path) -> None:
    again = diagnose.main(options(folders["image"], tmp_path / "again"))
    for name in FILES:
        assert (again / name).read_bytes() == (outputs["image"] / name).read_bytes(), name


def test_the_seed_counts(folders: dict[str, Path]) -> None:
    pipe = MNIFPipeline.from_pretrained(folders["voxel"], "cpu")
    small = SmoothnessSettings(num_pairs=1, num_samples=3, points=40, positions=5)
    facts = [diagnose_smoothness(pipe, dataclasses.replace(small, seed=seed)).facts() for seed in (0, 0, 1)]
    assert facts[0] == facts[1]
    assert facts[0]["paths"]["training"] != facts[2]["paths"]["training"]
    assert facts[0]["instances"]["samples"] != facts[2]["instances"]["samples"]


def test_without_a_prior_samples_are_left_out(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(folders["image"], tmp_path / "run" / "model"))
    shutil.rmtree(model / "prior")
    output = diagnose.main(options(model, None, seed=7))
    assert output == tmp_path / "run" / "diagnosis" / "seed7"
    assert "no latent prior yet, so samples are left out" in capsys.readouterr().out
    facts = json.loads((output / "diagnosis.json").read_text())
    assert list(facts["smoothness"]["paths"]) == list(facts["smoothness"]["instances"]) == ["training"]
    assert facts["model"]["has_prior"] is False
    assert "No prior, so no samples" in (output / "report.md").read_text()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_pairs": 0}, "`num_pairs` 0: expected a whole number of at least 1"),
        ({"num_samples": 1}, "`num_samples` 1: expected a whole number of at least 2"),
        ({"points": 0}, "`points` 0: expected a whole number of at least 1"),
        ({"resolution": 7}, "`resolution` 7: expected a whole number of at least 8"),
        ({"seed": -1}, "`seed` -1: expected a whole number of at least 0"),
    ],
)
def test_numbers_that_leave_nothing_to_do(tmp_path: Path, changes: dict[str, int], sentence: str) -> None:
    with pytest.raises(MNIFError, match=sentence):
        diagnose.main(options(tmp_path / "not looked at", tmp_path / "out", **changes))


def test_models_that_cannot_be_compared(tmp_path: Path) -> None:
    for count, sentence in ((0, "without the latents of training instances"), (1, "one training instance")):
        model = tiny_image_model(num_instances=2)
        model = dataclasses.replace(model, latents=model.latents[:count], names=model.names[:count])
        with pytest.raises(MNIFError, match=sentence):
            diagnose_bases(pipeline(model))
        with pytest.raises(MNIFError, match=sentence):
            diagnose_smoothness(pipeline(model))
    model = tiny_image_model(num_instances=3)
    model.latents[:] = model.latents[0].clone()
    with pytest.raises(MNIFError, match="all 3 training latents are the same"):
        diagnose_smoothness(pipeline(model))


def test_a_file_in_the_way_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(MNIFError, match="is a file"):
        diagnose.main(options(folders["image"], tmp_path / "out"))


def test_without_matplotlib_nothing_begins(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MNIFError, match="needs the plots extra"):
        diagnose.main(options(folders["image"], tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_help_is_light() -> None:
    program = (
        "import sys\nsys.argv = ['mnif-diagnose', '--help']\nfrom mnif_nerf.cli.diagnose import entrypoint\n"
        "try:\n    entrypoint()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "assert not {'torch', 'matplotlib', 'scipy', 'PIL'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "--num-pairs" in done.stdout


# --- bases ------------------------------------------------------------------------------------------------


def test_a_planted_dead_basis_is_found() -> None:
    model = tiny_voxel_model(num_instances=8)
    with torch.no_grad():
        for rows in model.field.bases:
            rows[3] *= 1e-3
        model.field.bases[1][6] *= 1e-3
    diagnosis = diagnose_bases(pipeline(model), points=50)
    assert diagnosis.dead_everywhere == [3]
    assert [layer.use.dead().nonzero().flatten().tolist() for layer in diagnosis.layers] == [[3], [3, 6], [3]]
    assert diagnosis.facts()["layers"][1]["dead"] == [3, 6]


def test_copies_of_one_basis_have_rank_one() -> None:
    model = tiny_image_model(num_instances=8)
    with torch.no_grad():
        for rows in model.field.bases:
            rows[:] = rows[:1].clone()
    diagnosis = diagnose_bases(pipeline(model))
    assert diagnosis.outputs.rank == pytest.approx(1.0, abs=1e-3)
    assert [layer.weights.rank for layer in diagnosis.layers] == pytest.approx([1.0] * 3, abs=1e-3)
    assert diagnosis.outputs.untrained_rank > 1.5
    assert diagnosis.output_correlations.numpy() == pytest.approx(np.ones((8, 8)), abs=1e-5)


def test_coefficients_along_one_direction_have_rank_one() -> None:
    model = tiny_image_model(num_instances=8)
    model.latents[:, 1:] = 0
    diagnosis = diagnose_bases(pipeline(model))
    assert [layer.coefficients.rank for layer in diagnosis.layers] == pytest.approx([1.0] * 3, abs=1e-3)
    assert diagnosis.most == 5  # latents have five numbers


def test_points_lie_where_the_data_is() -> None:
    radiance = data_points(pipeline(tiny_model()), 500)
    assert radiance.shape == (3, 500)
    assert radiance.abs().max() <= 0.375  # cells 1 to 6 of 8, world units
    assert radiance.abs().max() > 0.36
    image = data_points(pipeline(tiny_image_model()), 500)
    assert image.shape == (2, 64)
    assert sorted(set(image[0].tolist())) == pytest.approx(np.arange(-0.875, 1, 0.25))
    assert data_points(pipeline(tiny_image_model()), 10).shape == (2, 10)
    for ball in (tiny_voxel_model(), tiny_surface_model()):
        points = data_points(pipeline(ball), 300)
        assert points.abs().max() > 0.8, "field coordinates, that reach to the sides of the box"
        cells = torch.zeros(32, 32, 32, dtype=torch.bool)
        for name in range(6):
            cells |= torch.from_numpy(pipeline(ball).instance(name).occupancy(32))
        x, y, z = ((points + 1) * 16).long().clamp(max=31)
        near = torch.nn.functional.max_pool3d(cells[None, None].float(), 3, 1, 1)[0, 0] > 0
        assert not near.all()
        assert near[x, y, z].all()


@pytest.mark.parametrize("modality", MODELS)
def test_the_map_is_what_the_object_shows(modality: str) -> None:
    model = MODELS[modality](num_instances=8)
    pipe = pipeline(model)
    space, points = whitened_space(pipe), data_points(pipe, 30)
    values = output_map(pipe, space, points)(space.whiten(model.latents[2:3]).double())[0].float()
    item = pipe.instance(2)
    if modality == "voxel":
        expected = item.value(0.5 * points.T)
    elif modality == "image":
        picture = np.asarray(item.image(8), dtype=np.float32).reshape(64, 3) / 255
        row, column = ((points + 1) * 4).long()
        expected = torch.from_numpy(picture)[row * 8 + column].T.flatten()
    else:
        color, density = item.field.radiance(points.T)
        opacity = 1 - torch.exp(-density / 32)
        expected = torch.cat([color.T * opacity, opacity[None]]).flatten()
    torch.testing.assert_close(values, expected, rtol=1e-3, atol=5e-3)


def test_the_map_of_a_surface_is_its_paint_inside() -> None:
    pipe = pipeline(tiny_surface_model(num_instances=8))
    space, points = whitened_space(pipe), data_points(pipe, 30)
    values = output_map(pipe, space, points)(space.whiten(pipe.latents[2:3]).double())[0].float()
    item: Any = pipe.instance(2)
    inside = torch.sigmoid(-128 * item.distance(0.5 * points.T))
    expected = torch.cat([item.color(0.5 * points.T).T * inside, inside[None]]).flatten()
    torch.testing.assert_close(values, expected, rtol=1e-3, atol=5e-3)


def test_progress_is_told_as_often_as_announced() -> None:
    model = tiny_image_model(num_instances=4)
    settings = SmoothnessSettings(num_pairs=2, num_samples=6, points=10, positions=5)
    ticks: list[int] = []
    diagnose_smoothness(pipeline(model), settings, lambda: ticks.append(1))
    assert len(ticks) == smoothness_steps(pipeline(model), settings) == 4 + 2
    model.prior = LatentPrior.fit(model.latents, PriorConfig(steps=2), progress=False)
    ticks.clear()
    diagnose_smoothness(pipeline(model), settings, lambda: ticks.append(1))
    assert len(ticks) == smoothness_steps(pipeline(model), settings) == 4 + 6 + 3 * 2


def test_a_model_whose_training_broke_down_is_called_unresolved() -> None:
    model = tiny_image_model(num_instances=6)
    settings = SmoothnessSettings(num_pairs=3, num_samples=2, points=40)
    assert diagnose_smoothness(pipeline(model), settings).facts()["paths"]["training"]["unresolved"] == 0
    model.latents *= 300
    diagnosis = diagnose_smoothness(pipeline(model), settings)
    assert diagnosis.facts()["paths"]["training"]["unresolved"] == 3
    assert "3 of 3 paths change too fast" in smoothness_section(diagnosis, Image.new("RGB", (8, 8))).summary


def test_pairs_are_of_different_instances() -> None:
    rows = torch.arange(3.0)[:, None]
    pairs = draw_pairs(rows, 10 + rows, 200, torch.Generator().manual_seed(0))
    for start, end in (pairs["training"], pairs["samples"]):
        assert (start != end).all()
        assert len(set(start.flatten().tolist())) == len(set(end.flatten().tolist())) == 3
    start, end = pairs["training to sample"]
    assert start.max() < 10 <= end.min()


def test_loose_parts_are_measured() -> None:
    from mnif_nerf.diagnosis.smoothness import _solid_measures

    inside = np.zeros((8, 8, 8), dtype=bool)
    assert np.isnan(_solid_measures(inside)["loose"])
    inside[1:4, 1:4, 1:4] = True
    inside[4, 4, 4] = True  # touches at a corner
    assert _solid_measures(inside) == {"volume": 28 / 512, "components": 1.0, "loose": 0.0}
    inside[6:8, 6, 6] = True
    assert _solid_measures(inside) == {"volume": 30 / 512, "components": 2.0, "loose": pytest.approx(2 / 30)}


def test_the_nearest_of_a_training_instance_is_itself() -> None:
    pipe = pipeline(tiny_image_model(num_instances=6))
    assert measure(pipe, pipe.latents)["nearest"].tolist() == [0.0] * 6
    assert measure(pipe, pipe.latents + 1.0)["nearest"].min() > 0.1


def test_quartiles_leave_out_what_is_not_finite() -> None:
    assert quartiles([1.0, 2.0, 3.0, float("nan"), float("inf")]) == {
        "q1": 1.5, "median": 2.0, "q3": 2.5, "mean": 2.0, "count": 3
    }  # fmt: skip
    assert quartiles([float("nan")])["median"] is None


def test_rounding_reaches_every_number() -> None:
    assert rounded({"a": [1.23456789, (2, 1e-9 / 3)], "b": True}) == {"a": [1.23457, [2, 3.33333e-10]], "b": True}


# --- figures ----------------------------------------------------------------------------------------------


def test_figures_are_reproducible_and_whole(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        figure, (axis,) = plots.new_figure()
        axis.plot([1, 2], [2, 1], label="line")
        axis.legend()
        paths = save_figure(figure, tmp_path / folder, "line")
        assert [path.name for path in paths] == ["line.png", "line.svg"]
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == ["line.png", "line.svg"]
    for kind in ("png", "svg"):
        assert (tmp_path / "a" / f"line.{kind}").read_bytes() == (tmp_path / "b" / f"line.{kind}").read_bytes()
    assert "<dc:date>" not in (tmp_path / "a" / "line.svg").read_text()


def test_the_ablation_is_reported_when_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_model(tiny_voxel_model(num_instances=48), tmp_path / "model")
    small = {"num_samples": 2, "points": 16, "ablate_prior": True, "ablation_steps": 2}
    diagnose.main(options(folder, tmp_path / "out", **small))
    content = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert content["prior"]["steps"] == 2
    assert content["prior"]["training"] + content["prior"]["held_out"] == 48
    assert {row["change"] for row in content["prior"]["rows"]} >= {
        "real latents",
        "default",
        "prediction",
        "schedule",
        "whitening",
    }
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("The prior's part"))
    assert "real latents" not in said
    assert "<table>" in (tmp_path / "out" / "report.html").read_text()

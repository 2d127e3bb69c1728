"""JSON files that commands keep of their own work, damaged by whoever; and names that look like markup."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trimesh
from browser import chromium
from PIL import Image
from tiny_model import tiny_voxel_model
from tiny_runs import write_tiny_surfaces

from mnif_nerf.cli.generation_common import made_before
from mnif_nerf.data.download import download
from mnif_nerf.data.generate.mesh_points import sample_mesh_folder
from mnif_nerf.data.generate.settings import MeshFolderOptions
from mnif_nerf.data.generate.writer import claim_output, write_manifest
from mnif_nerf.data.stores.surface_store import open_surface_store
from mnif_nerf.diagnosis import sweep
from mnif_nerf.errors import MNIFError
from mnif_nerf.export.document import Section, Table, write_document
from mnif_nerf.files import read_record, write_json
from mnif_nerf.pipelines.model_folder import PRIOR_VARIANCE, read_model, write_model
from mnif_nerf.priors.prior import LatentPrior, PriorConfig
from mnif_nerf.progress import progress_bar, say
from mnif_nerf.rendering.camera_path import read_camera_path

ODD: list[Any] = [None, True, -1, 1e30, float("nan"), 10**400, "x", [], {}, [[]], {"a": 1}]


def report(folder: Path) -> tuple[Path, Callable[[], object]]:
    (folder / "model").touch()
    os.utime(folder / "model", (1, 1))
    path = folder / "report.json"
    write_json(path, {"settings": {"num_samples": 4}})
    return path, lambda: made_before(path, folder / "model", num_samples=4)


def downloaded(folder: Path) -> tuple[Path, Callable[[], object]]:
    (folder / "out" / "cars").mkdir(parents=True)
    path = folder / "cars.json"
    write_json(path, {"state": "done", "url": "there", "entries": ["cars"]})
    return path, lambda: download._finished(folder, "cars", "there", folder / "out")


def generated(folder: Path) -> tuple[Path, Callable[[], object]]:
    claim_output(folder / "data", "kind", {"seed": 1})
    write_manifest(folder / "data", "kind", {"seed": 1}, complete=True)
    return folder / "data" / "dataset.json", lambda: claim_output(folder / "data", "kind", {"seed": 1})


def points(folder: Path) -> tuple[Path, Callable[[], object]]:
    (folder / "meshes").mkdir()
    for k in range(2):
        trimesh.creation.box((0.3 + 0.1 * k, 0.4, 0.3)).export(folder / "meshes" / f"{k}.ply")

    def make() -> object:
        return sample_mesh_folder(folder / "meshes", folder / "data", options=MeshFolderOptions(None, seed=0)).splits

    make()
    return folder / "data" / "dataset.json", make


def surfaces(folder: Path) -> tuple[Path, Callable[[], object]]:
    write_tiny_surfaces(folder, {"train": 2})
    return folder / "points" / "train" / "manifest.json", lambda: open_surface_store(folder, "train").names


def sweep_point(folder: Path) -> tuple[Path, Callable[[], object]]:
    path = folder / "point.json"
    write_json(path, {"settings": {"steps": 4}, "row": {"psnr": 20.0}})
    return path, lambda: sweep._finished(path, {"steps": 4})


def camera_path(folder: Path) -> tuple[Path, Callable[[], object]]:
    path = folder / "path.json"
    pose = [1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 2, 0, 0, 0, 1]
    about = {"camera_type": "perspective", "render_width": 8, "render_height": 8, "fps": 24, "seconds": 1.0}
    write_json(path, {**about, "camera_path": [{"camera_to_world": pose, "fov": 50.0}]})
    return path, lambda: read_camera_path(path).poses.tolist()


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else list(enumerate(tree))[:1] if isinstance(tree, list) else ()
    return [path, *(leaf for key, value in items for leaf in leaves(value, (*path, key)))]


def replaced(text: str, path: tuple[Any, ...], value: Any) -> str:
    if not path:
        return json.dumps(value)
    tree = json.loads(text)
    node = tree
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return json.dumps(tree)


@pytest.mark.parametrize(
    "kind", [report, downloaded, generated, points, surfaces, sweep_point, camera_path], ids=lambda kind: kind.__name__
)
def test_odd_values_in_a_record_are_a_sentence_or_no_matter(
    kind: Callable[[Path], tuple[Path, Callable[[], object]]], tmp_path: Path
) -> None:
    path, use = kind(tmp_path)
    text, refused = path.read_text(), 0
    for leaf in leaves(json.loads(text)):
        for value in ODD:
            path.write_text(replaced(text, leaf, value))
            said = ""
            try:
                use()
            except MNIFError as error:
                refused, said = refused + 1, str(error)
            assert not said or (said.endswith(".") and "\n" not in said)
    assert refused or kind in (report, downloaded)  # which make again what they cannot read
    path.write_text("[]")
    with pytest.raises(MNIFError, match=r"json: holds \[\] where a description is expected"):
        read_record(path)


def test_a_changed_letter_in_a_manifest_is_noticed(tmp_path: Path) -> None:
    write_tiny_surfaces(tmp_path, {"train": 2})
    path = tmp_path / "points" / "train" / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace("ball000", "bell000"))
    with pytest.raises(MNIFError, match=r"manifest.json: is damaged .*; make the store again\.$"):
        open_surface_store(tmp_path, "train")
    content = {key: value for key, value in json.loads(text).items() if key != "sha256"}
    write_json(path, content)  # older than the digest
    assert open_surface_store(tmp_path, "train").names == ("ball000", "ball001")
    write_json(path, {**content, "names": [None, "ball001"]})
    with pytest.raises(MNIFError, match="names is not a list of the instances' names"):
        open_surface_store(tmp_path, "train")


@pytest.mark.parametrize(
    ("file", "path", "value", "words"),
    [
        ("config.json", ("grid", "resolution"), "x", "does not describe a grid"),
        ("config.json", ("grid", "resolution"), 17, "does not describe a grid"),
        ("config.json", ("field", "w0"), 1e30, "at most 1,000,000"),
        ("config.json", ("adaptation", "first_order"), "x", "first_order x, expected true or false"),
        ("prior/prior.json", ("report", "train_loss"), float("nan"), "train_loss of the report nan"),
        ("prior/prior.json", ("report", "steps"), "x", "steps of the report 'x'"),
        ("prior/prior.json", ("training", "batch_size"), None, "batch_size None"),
    ],
)
def test_a_model_with_what_no_training_writes(
    file: str, path: tuple[str, ...], value: Any, words: str, tmp_path: Path
) -> None:
    model = tiny_voxel_model()
    model.grid = {"resolution": 16, "channels": 1, "shape": [16, 16, 16]}
    model.prior = LatentPrior.fit(model.latents, PriorConfig(steps=2), progress=False)
    place = write_model(model, tmp_path / "model") / file
    place.write_text(replaced(place.read_text(), path, value))
    with pytest.raises(MNIFError, match=rf"{place.name}: .*{words}"):
        read_model(tmp_path / "model")


def test_settings_of_training_that_are_none(tmp_path: Path) -> None:
    model = tiny_voxel_model()
    model.training = {"prior_variance": None, "steps": None, "data": None, "heldout_views_per_scene": None}
    stored = read_model(write_model(model, tmp_path / "model"))
    assert (stored.prior_variance, stored.heldout_views, stored.data_name) == (PRIOR_VARIANCE, None, "voxel")


MARKUP = "a[/red][bold]b:smile:"


def test_nothing_in_a_progress_bar_is_markup(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(MARKUP, 2, MARKUP) as advance:
        advance(note=MARKUP)
    assert "a[/red][bold]b" in capsys.readouterr().err


def test_nothing_that_is_said_is_markup(capsys: pytest.CaptureFixture[str]) -> None:
    say(MARKUP)
    say(MARKUP, warning=True)
    assert capsys.readouterr().out.splitlines() == [MARKUP] * 2


def test_a_report_runs_and_fetches_nothing_that_a_name_says(tmp_path: Path) -> None:
    name = "<script>window.broken = 1</script><img src=x onerror='window.broken = 2'>![a](https://example.org/a.png)"
    table = Table(["name", "value"], [[name, "1"]])
    own = Image.new("RGB", (7, 7), "red")
    write_document(tmp_path, "numbers", name, {}, [name], [Section("a", name, "", {}, [name, table], {}, {"own": own})])
    with chromium() as browser:
        browser.get((tmp_path / "report.html").as_uri())
        widths = "return [...document.images].map((image) => [image.src.slice(-7), image.naturalWidth])"
        found = {tuple(pair) for pair in browser.execute_script(widths)}
        assert found == {("own.png", 7), ("g/a.png", 0)}
        assert browser.execute_script("return window.broken") is None
        said = " ".join(entry["message"] for entry in browser.get_log("browser"))
        assert "Content Security Policy" in said

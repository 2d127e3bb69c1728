"""Files that the page of mnif-export-web makes: meshes as GLB, judged by glTF's validator, three.js and Python's own
meshes; pictures as PNG, compared with Python's."""

from __future__ import annotations

import base64
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from browser import chromium
from node_packages import node, node_package
from PIL import Image
from test_assets_elsewhere import VALIDATE
from tiny_model import tiny_image_model, tiny_model, tiny_surface_model, tiny_voxel_model
from web_page import open_page, page, wait_for

from mnif_nerf.export import web
from mnif_nerf.export.density import level_of
from mnif_nerf.export.glb import linear_from_srgb
from mnif_nerf.objects.shape import NeuralShape
from mnif_nerf.objects.surface import NeuralSurface
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.pipelines.model_folder import StoredModel

By = pytest.importorskip("selenium.webdriver.common.by").By

RESOLUTION = 64
FILE = """
const [resolution, done] = arguments;
window.mnif.file(resolution).then(
  (bytes) => done(btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""))),
  (error) => done("error: " + error.message),
);
"""
THREE = """
import { readFileSync } from "node:fs";
const [folder, file] = process.argv.slice(1);
const { GLTFLoader } = await import(folder + "/examples/jsm/loaders/GLTFLoader.js");
const bytes = readFileSync(file);
const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
const { scene } = await new GLTFLoader().parseAsync(buffer, "");
scene.traverse((part) => {
  if (!part.isMesh) return;
  const { position, normal, color } = part.geometry.attributes;
  const { vertexColors, metalness } = part.material;
  console.log(JSON.stringify({ vertices: position.count, normals: normal.count, colors: color ? color.count : 0,
    triangles: part.geometry.index.count / 3, vertexColors, metalness }));
});
"""

NETS = """
import { readFileSync } from "node:fs";
const [file, size] = process.argv.slice(1);
const nets = new Function(readFileSync(file, "utf8") + "; return surfaceNets;")();
const values = Float32Array.from(JSON.parse(readFileSync(0, "utf8")));
const { corners, faces } = nets(values, Number(size));
console.log(JSON.stringify({ corners: Array.from(corners), faces: Array.from(faces) }));
"""


def file_of(browser: Any, resolution: int) -> bytes:
    answer = browser.execute_async_script(FILE, resolution)
    assert not answer.startswith("error"), answer
    return base64.b64decode(answer)


MODELS: dict[str, Callable[[], StoredModel]] = {
    "radiance": tiny_model,
    "voxel": lambda: tiny_voxel_model(head="logit"),
    "sdf": tiny_surface_model,
}


@pytest.fixture(scope="module", params=MODELS)
def made(request: Any, driver: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[MNIFPipeline, Path]:
    """A model, and the file that its page makes of the second object."""
    folder = tmp_path_factory.mktemp("files")
    pipe = MNIFPipeline(MODELS[request.param]())
    open_page(driver, page(pipe, folder / "page.html"))
    driver.find_elements(By.CSS_SELECTOR, ".gallery input")[1].click()
    (folder / "object.glb").write_bytes(file_of(driver, RESOLUTION))
    return pipe, folder / "object.glb"


def test_the_validator_finds_nothing(made: tuple[MNIFPipeline, Path]) -> None:
    command = [node(), "-e", VALIDATE, str(node_package("gltf-validator")), str(made[1])]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    (report,) = json.loads(ended.stdout)
    issues = report["issues"]
    counts = [issues[name] for name in ("numErrors", "numWarnings", "numInfos", "numHints")]
    assert counts == [0, 0, 0, 0], issues
    assert report["info"]["totalTriangleCount"] > 500


def test_three_opens_it(made: tuple[MNIFPipeline, Path]) -> None:
    command = [node(), "--input-type=module", "-e", THREE, node_package("three").as_uri(), str(made[1])]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    facts = json.loads(ended.stdout)
    colored = made[0].modality != "voxel"
    assert facts["normals"] == facts["vertices"] > 250
    assert (facts["vertexColors"], facts["colors"]) == (colored, facts["vertices"] if colored else 0)
    assert facts["metalness"] == 0


def in_world(vectors: np.ndarray) -> np.ndarray:
    """glTF's axes (y, z, x) as the library's."""
    return np.array(vectors, dtype=np.float32)[:, [2, 0, 1]]


def is_inside(item: Any, points: np.ndarray) -> np.ndarray:
    at = torch.from_numpy(points)
    if isinstance(item, NeuralShape | NeuralSurface):
        return (item.value(at) > 0).numpy()
    return (item.field.density(at) > level_of(item.field)).numpy()


def test_it_is_the_surface_and_the_colours_of_the_field(made: tuple[MNIFPipeline, Path]) -> None:
    pipe, path = made
    item = pipe.instance(1)
    mesh = trimesh.load(path, force="mesh", process=False)
    points, normals = in_world(mesh.vertices), in_world(mesh.vertex_normals)
    step = 0.5 / RESOLUTION
    free = (np.abs(points) < 0.5 - 3 * step).all(axis=1)
    if pipe.model.cells is not None:  # it also ends where the model's bounds do
        free &= (np.abs(points) < 0.375 - 3 * step).all(axis=1)
    assert free.sum() > 100
    assert is_inside(item, points - step * normals)[free].mean() > 0.95
    assert is_inside(item, points + step * normals)[free].mean() < 0.05
    if pipe.modality != "voxel":
        content = path.read_bytes()
        length = int.from_bytes(content[12:16], "little")
        tree, data = json.loads(content[20 : 20 + length]), content[28 + length :]
        accessor = tree["accessors"][tree["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"]]
        view = tree["bufferViews"][accessor["bufferView"]]
        found = np.frombuffer(data[view["byteOffset"] :][: view["byteLength"]], "<f4").reshape(-1, 3)
        wanted = linear_from_srgb(item.surface_colors(points, normals))
        assert wanted.std() > 0.05
        assert np.median(np.abs(found - wanted)) < 0.01
        assert np.abs(found - wanted).mean() < 0.02


def test_stored_normals_point_outwards(made: tuple[MNIFPipeline, Path]) -> None:
    mesh = trimesh.load(made[1], force="mesh", process=False)
    stored = np.array(mesh.vertex_normals)
    mesh = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    assert np.linalg.norm(stored, axis=1) == pytest.approx(1, abs=1e-5)
    assert (stored * mesh.vertex_normals).sum(axis=1).mean() > 0.9
    assert mesh.volume > 0
    assert mesh.is_watertight


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_what_is_a_cell_thin_is_closed(share: float) -> None:
    """Leaves and crumbs: where diagonal neighbours touch, edges belonged to four triangles."""
    generator, size = np.random.default_rng(0), 14
    values = np.full((size,) * 3, -1.0)
    inside = generator.random((size - 2,) * 3) < share
    values[1:-1, 1:-1, 1:-1] = np.where(inside, 1, -1) * generator.uniform(0.01, 1, inside.shape)
    script = Path(web.__file__).with_name("web_page") / "surface.js"
    command = [node(), "--input-type=module", "-e", NETS, str(script), str(size)]
    content = json.dumps(values.ravel().tolist())
    ended = subprocess.run(command, input=content, capture_output=True, text=True, check=True)
    made = json.loads(ended.stdout)
    mesh = trimesh.Trimesh(np.reshape(made["corners"], (-1, 3)), np.reshape(made["faces"], (-1, 3)), process=False)
    assert len(mesh.faces) > 2000
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.volume > 0
    lattice = np.argwhere(values > 0)
    nearest = trimesh.proximity.closest_point(mesh, lattice)[1]
    assert nearest.max() < 1.8, "every cell inside has the surface around it"


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_picture_is_the_one_python_makes(browser: Any, tmp_path: Path, channels: int) -> None:
    pipe = MNIFPipeline(tiny_image_model(channels=channels))
    open_page(browser, page(pipe, tmp_path / "page.html"))
    browser.find_elements(By.CSS_SELECTOR, ".gallery input")[2].click()
    found = Image.open(io.BytesIO(file_of(browser, 32)))
    wanted = pipe.instance(2).image(32).convert("RGBA")
    seen, expected = (np.asarray(picture.convert("RGBA"), int) for picture in (found, wanted))
    assert found.size == (32, 32)
    assert np.abs(seen[..., 3] - expected[..., 3]).max() <= 1
    # A canvas holds colours times alpha: where little of them is seen, rounding moves them.
    assert (np.abs(seen - expected)[..., :3] * expected[..., 3:] / 255).max() <= 2


def test_a_blend_is_downloaded_as_it_is_shown(browser: Any, tmp_path: Path) -> None:
    pipe = MNIFPipeline(tiny_image_model())
    open_page(browser, page(pipe, tmp_path / "page.html"))
    browser.execute_script(
        "const b = document.getElementById('blend'); b.value = 25; b.dispatchEvent(new Event('input'))"
    )
    seen = np.asarray(Image.open(io.BytesIO(file_of(browser, 16))).convert("RGB"), int)
    expected = np.asarray(pipe.decode(torch.lerp(pipe.latents[0], pipe.latents[1], 0.25)).image(16), int)
    assert np.abs(seen - expected).max() <= 1


def test_the_button_gives_a_file(tmp_path: Path) -> None:
    with chromium(900, 900) as browser:
        browser.execute_cdp_cmd(
            "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path / "given")}
        )
        open_page(browser, page(MNIFPipeline(tiny_image_model()), tmp_path / "page.html", names=("a/b: c", "b", "c")))
        browser.find_element(By.CSS_SELECTOR, "#resolution option[value='128']").click()
        browser.find_element(By.ID, "download").click()
        wait_for(lambda: (tmp_path / "given" / "a_b_c.png").exists(), "the file")
        assert Image.open(tmp_path / "given" / "a_b_c.png").size == (128, 128)
        assert "128 x 128 pixels" in browser.find_element(By.ID, "downloaded").text
        assert browser.get_log("browser") == []


def test_nothing_to_mesh_is_told(browser: Any, tmp_path: Path) -> None:
    model = tiny_voxel_model()
    with torch.no_grad():
        for layer in model.field.parameter_groups()["fields"]:
            layer[:] = -0.001
    open_page(browser, page(MNIFPipeline(model), tmp_path / "page.html"))
    assert browser.execute_async_script(FILE, 64) == "error: there is no surface in it"

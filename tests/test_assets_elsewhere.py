"""Assets in other programs: glTF's official validator, and three.js in a real browser."""

from __future__ import annotations

import base64
import functools
import io
import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium
from node_packages import node, node_package
from PIL import Image
from tiny_painted import PaintedBall, paint

from mnif_nerf.export.assets import AssetOptions, make_assets
from mnif_nerf.export.mesh_files import write_mesh

SIZE, HALF = 192, 0.36  # pixels along an edge, and half of what they show
OPTIONS = AssetOptions(resolution=64, faces=500, texture=512, origin="centre")
KINDS = ("picture.glb", "vertices.glb", "picture.obj", "vertices.ply", "plain.glb", "plain.stl")
VALIDATE = """
const [folder, ...files] = process.argv.slice(1);
const validator = require(folder), fs = require("fs");
const check = (file) => validator.validateBytes(new Uint8Array(fs.readFileSync(file)));
Promise.all(files.map(check)).then((found) => console.log(JSON.stringify(found)));
"""
SHOW = "const [name, eye, up, done] = arguments; window.show(name, eye, up).then(done, (error) => done(String(error)))"
PAGE = """<!doctype html><script type="importmap">{"imports": {"three": "/three/build/three.module.js",
"loaders/": "/three/examples/jsm/loaders/"}}</script><script type="module">
import * as THREE from "three";
import { GLTFLoader } from "loaders/GLTFLoader.js";
import { OBJLoader } from "loaders/OBJLoader.js";
import { MTLLoader } from "loaders/MTLLoader.js";
import { PLYLoader } from "loaders/PLYLoader.js";
import { STLLoader } from "loaders/STLLoader.js";
const SIZE = 192, HALF = 0.36;
const renderer = new THREE.WebGLRenderer({preserveDrawingBuffer: true});
renderer.setSize(SIZE, SIZE);
async function load(name) {
  const kind = name.split(".").pop(), path = "/files/" + name;
  if (kind === "glb") return (await new GLTFLoader().loadAsync(path)).scene;
  if (kind === "obj") {
    const materials = await new MTLLoader().setPath("/files/").loadAsync(name.replace(".obj", ".mtl"));
    await Promise.all(Object.values(materials.materialsInfo).map((info) =>
      new THREE.TextureLoader().loadAsync("/files/" + info.map_kd)));  // so that the picture is there when it is drawn
    materials.preload();
    await new Promise((done) => { THREE.DefaultLoadingManager.onLoad = done; });
    return new OBJLoader().setMaterials(materials).loadAsync(path);
  }
  const geometry = await new {ply: PLYLoader, stl: STLLoader}[kind]().loadAsync(path);
  return new THREE.Mesh(geometry, new THREE.MeshStandardMaterial({vertexColors: kind === "ply"}));
}
// What is seen by light that is as bright everywhere: the base colour, through three's own way to the screen.
window.show = async (name, eye, up) => {
  const object = await load(name);
  let facts = {};
  object.traverse((part) => {
    if (!part.isMesh) return;
    const {map, vertexColors, metalness, color, side} = part.material;
    const normal = part.geometry.attributes.normal;
    facts = {map: !!map, vertexColors, metalness, normals: normal ? normal.count : 0,
             vertices: part.geometry.attributes.position.count};
    part.material = new THREE.MeshBasicMaterial({map, vertexColors, color});
  });
  const scene = new THREE.Scene();
  scene.background = new THREE.Color(1, 1, 1);
  scene.add(object);
  const camera = new THREE.OrthographicCamera(-HALF, HALF, HALF, -HALF, 0.1, 10);
  camera.position.set(...eye).multiplyScalar(2);
  camera.up.set(...up);
  camera.lookAt(0, 0, 0);
  renderer.render(scene, camera);
  return {...facts, picture: renderer.domElement.toDataURL()};
};
window.ready = true;
</script>"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ball in every format, with a picture, with colours at vertices, and plain."""
    folder = tmp_path_factory.mktemp("files")
    (asset,) = make_assets(PaintedBall(), OPTIONS)
    for name in KINDS:
        mesh = (asset.textured if name.startswith("picture") else asset.mesh).copy()  # type: ignore[union-attr]
        if name.startswith("plain"):
            mesh.visual = mesh.visual.__class__()
        write_mesh(mesh, folder / name)
    (folder / "page.html").write_text(PAGE)
    return folder


class _Handler(SimpleHTTPRequestHandler):
    """Serves the written files, and three.js beside them."""

    def __init__(self, *arguments: Any, files: Path, three: Path, **named: Any) -> None:
        self.places = {"files": files, "three": three}
        super().__init__(*arguments, directory=str(files), **named)

    def translate_path(self, path: str) -> str:
        place, _, rest = path.split("?")[0].lstrip("/").partition("/")
        return str(self.places[place] / rest) if place in self.places else str(self.places["files"] / "nothing")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def driver(files: Path) -> Iterator[Any]:
    handler = functools.partial(_Handler, files=files, three=node_package("three"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with chromium(400, 400) as opened:
            opened.set_script_timeout(120)
            opened.get(f"http://127.0.0.1:{server.server_port}/files/page.html")
            wait = "const done = arguments[0]; (function look() { window.ready ? done() : setTimeout(look, 50); })()"
            opened.execute_async_script(wait)
            yield opened
    finally:
        server.shutdown()
        server.server_close()


def shown(driver: Any, name: str, eye: tuple[int, int, int], up: tuple[int, int, int]) -> tuple[dict, np.ndarray]:
    """What three.js says of a file, and the picture [SIZE, SIZE, 3] in [0, 1] that it draws."""
    facts = driver.execute_async_script(SHOW, name, list(eye), list(up))
    assert isinstance(facts, dict), facts
    picture = Image.open(io.BytesIO(base64.b64decode(facts.pop("picture").split(",")[1]))).convert("RGB")
    return facts, np.asarray(picture, np.float64) / 255


def expected(eye: np.ndarray, right: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What one sees of the ball from `eye` (all in the library's axes): colours, and where it is surely seen."""
    axis = ((np.arange(SIZE) + 0.5) / SIZE * 2 - 1) * HALF / 0.3
    across, down = np.meshgrid(axis, axis)
    inside = across**2 + down**2
    toward = np.sqrt(np.maximum(1 - inside, 0))
    direction = across[..., None] * right - down[..., None] * up + toward[..., None] * eye
    return paint(direction.reshape(-1, 3)).reshape(SIZE, SIZE, 3), inside < 0.8


X, Y, Z = np.eye(3)
# For each view: the eye and what is right of the picture, up being z, in the library's axes.
VIEWS = {"front": (X, Y), "left": (Y, -X)}


@pytest.mark.parametrize("name", [kind for kind in KINDS if not kind.startswith("plain")])
def test_three_shows_the_colours_of_the_field(name: str, driver: Any) -> None:
    for eye, right in VIEWS.values():
        seen_from = tuple(eye if name.endswith("ply") else eye[[1, 2, 0]])  # (x, y, z) is (y, z, x) where y is up
        upward = (0, 0, 1) if name.endswith("ply") else (0, 1, 0)
        facts, picture = shown(driver, name, tuple(map(float, seen_from)), upward)
        colors, where = expected(eye, right, Z)
        error = np.abs(picture - colors)[where]
        pictured = name.startswith("picture")
        assert facts["map"] == pictured
        assert facts["vertexColors"] == (not pictured)
        assert facts["normals"] == facts["vertices"] > 0
        # The stripe is narrower than a triangle: only a picture shows it.
        assert np.median(error) < (0.006 if pictured else 0.06)
        assert error.mean() < (0.015 if pictured else 0.09)
    assert [entry for entry in driver.get_log("browser") if "favicon" not in entry["message"]] == []


@pytest.mark.parametrize("name", ["plain.glb", "plain.stl"])
def test_three_opens_what_has_no_colours(name: str, driver: Any) -> None:
    facts, picture = shown(driver, name, (0.0, 0.0, 1.0), (0, 1, 0))
    ball = (picture < 0.99).any(axis=-1) if name.endswith("glb") else None
    assert facts["normals"] == facts["vertices"] > 0
    if ball is not None:
        assert ball.mean() == pytest.approx(np.pi * (0.3 / HALF / 2) ** 2, rel=0.02)
        assert np.ptp(picture[ball], axis=0) == pytest.approx(0, abs=0.3)  # one grey, but for its rim


def test_the_validator_finds_nothing(files: Path) -> None:
    names = [str(files / name) for name in KINDS if name.endswith("glb")]
    validator = node_package("gltf-validator")
    ended = subprocess.run([node(), "-e", VALIDATE, str(validator), *names], capture_output=True, text=True, check=True)
    reports = json.loads(ended.stdout)
    assert len(reports) == 3
    for report in reports:
        issues = report["issues"]
        assert (issues["numErrors"], issues["numWarnings"], issues["numInfos"], issues["numHints"]) == (0, 0, 0, 0), (
            issues
        )
        assert report["info"]["totalTriangleCount"] == 500
    assert reports[0]["info"]["resources"][1]["image"]["transfer"] == "srgb"


def test_the_validator_would_find_something(files: Path, tmp_path: Path) -> None:
    content = bytearray((files / "vertices.glb").read_bytes())
    content[-4:] = b"\xff\xff\xff\x7f"  # the last index names a vertex that is not there
    (tmp_path / "broken.glb").write_bytes(content)
    command = [node(), "-e", VALIDATE, str(node_package("gltf-validator")), str(tmp_path / "broken.glb")]
    (report,) = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert report["issues"]["numErrors"] > 0

"""Who imports whom: only downwards and never in circles; nerfstudio only on top; nothing heavy before it is used."""

from __future__ import annotations

import ast
import graphlib
import importlib
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from no_nerfstudio import WITHOUT_NERFSTUDIO

PACKAGE = Path(importlib.import_module("mnif_nerf").__file__ or "").parent
# From the ground up: a room imports itself and what lies on lower floors, late imports included. A room is a module, or
# a folder with what is below it; the longest name that fits says where a module lies.
FLOORS = (
    ("mnif_nerf", "axes", "errors", "files", "labels", "limits", "machine", "names", "progress", "random", "scene_box")
    + ("saved_settings", "schedules", "tensor_files"),
    ("fields",),
    ("rendering",),
    ("latents", "priors", "metrics", "data"),
    ("export",),
    ("objects",),
    ("modalities",),
    ("pipelines", "viewer.directions", "viewer.saving"),
    ("evaluation", "diagnosis", "viewer.latent_browser"),
    ("models", "viewer.panel", "viewer.label_controls", "viewer.nerfstudio_patches"),
    ("pipelines.training", "pipelines.trainer", "pipelines.grids"),
    ("configs",),
    ("cli",),
    ("start",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# The parts of the upper floors that need nerfstudio.
NERFSTUDIO = ("models", "configs", "pipelines.training", "pipelines.grids", "pipelines.trainer")
NERFSTUDIO_VIEWER = ("viewer.panel", "viewer.nerfstudio_patches")


def module_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def works_without_nerfstudio(file: Path) -> bool:
    own = name_of(file).removeprefix("mnif_nerf.")
    return not any(own == part or own.startswith(f"{part}.") for part in (*NERFSTUDIO, *NERFSTUDIO_VIEWER))


def imported(file: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every import that runs; those for type checkers alone do not."""
    waiting: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        waiting.extend(ast.iter_child_nodes(node))


def edges() -> set[tuple[str, str]]:
    """Which module of the package imports which, without the package's name."""
    known = {name_of(file): file for file in module_files()}
    found = set()
    for name, file in known.items():
        for _, target in imported(file):
            target = target if target in known else target.rpartition(".")[0]
            if target in known and target != name:
                found.add((name.removeprefix("mnif_nerf."), target.removeprefix("mnif_nerf.")))
    return found


def floor_of(module: str) -> int:
    parts = module.split(".")
    rooms = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((FLOOR_OF[room] for room in rooms if room in FLOOR_OF), -1)


def room_of(module: str) -> str:
    return module.split(".")[0]


def test_every_room_has_a_floor() -> None:
    nowhere = {name for file in module_files() if floor_of(name := name_of(file).removeprefix("mnif_nerf.")) < 0}
    assert nowhere <= {"viewer"}  # an empty package, whose modules have floors of their own
    assert not list((PACKAGE / "viewer" / "__init__.py").read_text())


def test_imports_go_down_only() -> None:
    up = {
        (here, there)
        for here, there in edges()
        if floor_of(there) > floor_of(here)
        # Rooms that share a floor do not know each other, but those of the ground floor.
        or (floor_of(there) == floor_of(here) > 0 and room_of(there) != room_of(here))
    }
    assert sorted(up) == []


def test_there_are_no_circles() -> None:
    graph: dict[str, set[str]] = {}
    for here, there in edges():
        graph.setdefault(here, set()).add(there)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"modules that import each other: {' > '.join(reversed(error.args[1]))}")


def test_nerfstudio_is_named_only_where_it_may_be() -> None:
    wrong = [
        f"{file}:{line}"
        for file in module_files()
        if works_without_nerfstudio(file)
        for line, name in imported(file)
        if name.split(".")[0] == "nerfstudio"
    ]
    assert not wrong


BLOCKED = (
    WITHOUT_NERFSTUDIO
    + """
from importlib import import_module

folder, output, *modules = sys.argv[1:]
for module in modules:
    import_module(module)

from mnif_nerf import MNIFPipeline

pipe = MNIFPipeline.from_pretrained(folder, device="cpu")
first, second = pipe(num_samples=2, seed=1)
assert first.render(resolution=8).size == (8, 8)
assert pipe.nearest(second)[0] in pipe.names
assert len(pipe.interpolate(0, 1, num=3)) == 3
mesh = pipe.instance(0).mesh(resolution=16)
assert mesh.is_watertight
mesh.export(output + "/object.glb")
first.save(output + "/object.safetensors")
pipe.save_pretrained(output + "/copy")
assert "nerfstudio" not in sys.modules
"""
)


def test_generation_works_with_nerfstudio_blocked(trained: Path, tmp_path: Path) -> None:
    modules = [name_of(file) for file in module_files() if works_without_nerfstudio(file)]
    assert {"mnif_nerf.fields.spec", "mnif_nerf.data.stores.scene_store", "mnif_nerf.cli.demo"} <= set(modules)
    command = [sys.executable, "-c", BLOCKED, str(trained), str(tmp_path), *modules]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "object.glb").read_bytes()[:4] == b"glTF"
    assert (tmp_path / "copy" / "prior" / "prior.json").is_file()


def test_the_package_itself_is_light() -> None:
    program = (
        "import sys, mnif_nerf; assert 'MNIFPipeline' in dir(mnif_nerf); import mnif_nerf.errors, mnif_nerf.files\n"
        "heavy = {'torch', 'numpy', 'nerfstudio', 'tyro'} & set(sys.modules); assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_public_names_resolve() -> None:
    import mnif_nerf

    for name in mnif_nerf.__all__:
        assert getattr(mnif_nerf, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = mnif_nerf.Nonsense


def test_the_methods_module_brings_little_beyond_nerfstudio() -> None:
    """Every ns-* command imports it, so it may neither load what only generation needs nor read a file."""
    pytest.importorskip("nerfstudio")
    program = (
        "import sys\nimport nerfstudio.configs.base_config, nerfstudio.engine.trainer\n"
        "import nerfstudio.pipelines.base_pipeline, nerfstudio.data.datamanagers.full_images_datamanager\n"
        "import builtins\nbefore = set(sys.modules)\n"
        "import mnif_nerf.configs as configs\n"
        "late = {'diffusers', 'trimesh', 'mcubes', 'open3d', 'imageio', 'embreex', 'huggingface_hub', 'lpips'}\n"
        "heavy = late & (set(sys.modules) - before); assert not heavy, heavy\n"
        "assert [configs.mnif.config.method_name, configs.mnif_lite.config.method_name] == ['mnif', 'mnif-lite']\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_entry_points_load() -> None:
    pytest.importorskip("nerfstudio")
    from nerfstudio.plugins.registry_dataparser import DataParserSpecification
    from nerfstudio.plugins.types import MethodSpecification

    kinds = {
        "nerfstudio.method_configs": MethodSpecification,
        "nerfstudio.dataparser_configs": DataParserSpecification,
    }
    found = {(point.group, point.name): point.load() for point in distribution("mnif_nerf").entry_points}
    names = {name for group, name in found if group in kinds}
    sizes = {f"mnif{kind}{size}" for kind in ("", "-sdf", "-voxel", "-image", "-signal") for size in ("", "-lite")}
    paper = {"mnif-srn-cars-s", "mnif-shapenet-s", "mnif-shapenet-l", "mnif-celebahq-s", "mnif-celebahq-l"}
    assert names == {*sizes, *paper, "srn"}
    for (group, name), thing in found.items():
        if group in kinds:
            assert isinstance(thing, kinds[group]), name
            assert thing.description, name
        else:
            assert callable(thing), name

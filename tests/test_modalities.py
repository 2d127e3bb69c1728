"""Modalities: each answers everything that is asked of it, and nothing outside their room asks which one it has."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import mnif_nerf
from mnif_nerf import modalities
from mnif_nerf.data.observations.observations import Kind
from mnif_nerf.errors import MNIFError
from mnif_nerf.modalities import Modality
from mnif_nerf.modalities.traits import OBSERVATION_WORDS, Card, Fitting
from mnif_nerf.objects.base import NeuralObject

ROOT = Path(mnif_nerf.__file__).parent
NAMES = {"radiance", "sdf", "voxel", "image", "signal"}
# Files where such a word is compared with, or is a key, and means something else.
OTHER_WORDS = {
    "cli/sample.py": "a key of samples.json",
    "models/grid_data.py": "a key of nerfstudio's batches",
    "models/scene_data.py": "a key of nerfstudio's batches",
    "fields/point_loss.py": "a kind of loss",
    "latents/meta.py": "a head",
    "rendering/radiance_losses.py": "a head",
}
# Below the modalities' floor, where stores and readers of grids still tell solids from pictures by name.
NOT_YET = ("data/check/grids.py", "data/sampling/point_sampler.py", "data/stores")


def asked(path: Path) -> Iterator[int]:
    """Lines where a modality's name is compared with, or is a key of a table."""

    def named(node: ast.AST | None) -> bool:
        if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
            return any(named(item) for item in node.elts)
        return isinstance(node, ast.Constant) and node.value in NAMES

    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare):
            found = any(named(part) for part in (node.left, *node.comparators))
        elif isinstance(node, ast.Dict):
            found = any(named(key) for key in node.keys)
        elif isinstance(node, ast.MatchValue):
            found = named(node.value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            found = node.func.attr in ("startswith", "endswith", "count", "index") and any(map(named, node.args))
        else:
            found = False
        if found:
            yield node.lineno  # type: ignore[attr-defined]


def test_nothing_outside_asks_which_modality_it_has() -> None:
    files = [path for path in sorted(ROOT.rglob("*.py")) if path.relative_to(ROOT).parts[0] != "modalities"]
    found = {str(path.relative_to(ROOT)): list(asked(path)) for path in files}
    found = {name: lines for name, lines in found.items() if lines}
    unknown = {name: lines for name, lines in found.items() if name not in OTHER_WORDS and not name.startswith(NOT_YET)}
    assert not unknown, f"ask the modality instead: {unknown}"
    assert set(OTHER_WORDS) <= set(found), "these need no exception any more"


@pytest.mark.parametrize("name", modalities.names())
def test_a_modality_answers_everything(name: str, tmp_path: Path) -> None:
    kind = modalities.get(name)
    assert (kind.name, modalities.get(name)) == (name, kind)
    for attribute, annotation in inspect.get_annotations(Modality).items():
        assert hasattr(kind, attribute), f"{attribute}: {annotation}"
    assert issubclass(kind.object_class, NeuralObject)
    assert kind.object_class.modality == name
    assert all(isinstance(word, str) and word for word in (kind.noun, kind.nouns, kind.method))
    assert isinstance(kind.card, Card)
    assert isinstance(kind.fitting, Fitting)
    assert all(
        command.startswith("mnif-") and "run/config.yml" in command for command in kind.next_commands("run/config.yml")
    )
    assert hasattr(kind.object_class, "mesh") or not kind.has_surface
    assert hasattr(kind.object_class, "orbit") or not kind.has_views
    for protocol in ("small", "standard", "paper"):
        assert isinstance(kind.protocol_changes(protocol), dict)
    with pytest.raises(MNIFError, match=str(tmp_path)):
        kind.locate_data(tmp_path)


@pytest.mark.parametrize("name", modalities.names())
@pytest.mark.parametrize("observation", OBSERVATION_WORDS)
def test_an_observation_fits_or_is_refused_with_what_fits(name: str, observation: Kind) -> None:
    kind = modalities.get(name)
    if observation in kind.fitting.kinds:
        kind.check_observation(observation)
        return
    with pytest.raises(MNIFError, match=f"^{OBSERVATION_WORDS[observation]} cannot be fitted") as caught:
        kind.check_observation(observation)
    assert all(OBSERVATION_WORDS[other] in str(caught.value) for other in kind.fitting.kinds)


def test_an_unknown_modality() -> None:
    with pytest.raises(MNIFError, match=r"^config.json: modality 'sound' is not known; this version has radiance,"):
        modalities.get("sound", "config.json")


@pytest.mark.parametrize("name", ["radiance", "sdf", "voxel", "image"])
def test_the_first_modalities_have_a_demo_and_a_page(name: str) -> None:
    kind = modalities.get(name)
    assert kind.demo.method == f"{kind.method}-lite"
    assert set(kind.heads) <= set(kind.drawing.heads)


def test_what_a_modality_lacks_is_said_in_a_sentence() -> None:
    with pytest.raises(MNIFError, match="no sweep over models of objects"):
        _ = modalities.get("radiance").sweep
    with pytest.raises(MNIFError, match="pictures have no surface"):
        modalities.get("image").check_level(0.5)

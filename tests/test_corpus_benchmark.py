"""benchmarks/corpus.py: outcomes of a folder of meshes, good, poor and bad."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tiny_gltf import UV, Gltf

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import corpus


def test_every_file_has_an_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    file = Gltf()
    file.node(mesh=file.box({"pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 1]}}))
    file.write(tmp_path / "fine.glb")
    source = file.add("images", uri="gone.png")
    texture = {"baseColorTexture": {"index": file.add("textures", source=source)}}
    file.node(mesh=file.box({"pbrMetallicRoughness": texture}, TEXCOORD_0=file.array(UV)))
    file.write(tmp_path / "grey.glb")
    (tmp_path / "bad.glb").write_bytes(b"nothing")
    (tmp_path / "car.fbx").write_bytes(b"x")
    found = corpus.look_at_all(corpus.list_folder(tmp_path), 16, 60.0)
    words = {path.name: one.outcome for path, one in found.items()}
    assert words == {"fine.glb": corpus.READ, "grey.glb": corpus.TOLD, "bad.glb": corpus.LEFT_OUT}

    def look_at(path: Path, *_: object) -> corpus.Outcome:
        return corpus.Outcome("blank") if path.name == "bad.glb" else corpus.Outcome(corpus.READ)

    def look_at_all(folder: corpus.MeshFolder, *_: object) -> dict[Path, corpus.Outcome]:
        return {path: look_at(path) for path in folder.meshes}

    monkeypatch.setattr(corpus, "look_at_all", look_at_all)
    with pytest.raises(SystemExit):
        corpus.main(corpus.Config(tmp_path, output=tmp_path / "out.json"))
    printed = capsys.readouterr().out
    assert "| blank | 1 |" in printed
    assert "blank: bad.glb" in printed
    assert "1 file of kinds that are not read: car.fbx" in printed
    assert (tmp_path / "out.json").is_file()

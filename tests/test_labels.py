"""Labels: read from tables and folders, kept with data and model, told to the prior, asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from mnif_nerf.cli import data
from mnif_nerf.data.generate.procedural import label_cars
from mnif_nerf.data.generate.settings import CarCounts
from mnif_nerf.data.readers.labels import folder_labels, read_labels, table_labels, write_labels
from mnif_nerf.data.stores.grid_store import open_grid_store
from mnif_nerf.errors import MNIFError
from mnif_nerf.files import read_json, write_json
from mnif_nerf.labels import Label, Labels, Wish
from mnif_nerf.latents.rarity import Rarity
from mnif_nerf.modalities import get as modality
from mnif_nerf.modalities.grid_settings import GridDataSettings
from mnif_nerf.modalities.radiance_settings import SceneDataSettings
from mnif_nerf.priors.conditions import ConditionalDenoiser, LabelDropout, encode_label
from mnif_nerf.priors.prior import LatentPrior, PriorConfig

TREES = "name,species,height,season\noak1,oak,7.5,summer\noak2,oak,8,\npine1,pine,12,winter\npine2,pine,?,winter\n"
NAMES = ("oak1", "oak2", "pine1", "pine2")
SMALL = PriorConfig(steps=200, width=32, blocks=2, batch_size=64)


@pytest.fixture
def table(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "labels.csv"
        path.write_text(text)
        return path

    return write


def labels_of(path: Path, names: tuple[str, ...] = NAMES) -> Labels | None:
    return table_labels(read_labels(path), dict.fromkeys(names), path.parent, names)


# ------------------------------------------------------------------------------------------------------------ tables


def test_a_table_of_classes_and_numbers(table: Callable[[str], Path]) -> None:
    found = labels_of(table(TREES))
    assert found is not None
    assert found.columns["species"] == ("oak", "oak", "pine", "pine")
    assert found.columns["height"] == (7.5, 8.0, 12.0, None)
    assert found.columns["season"] == ("summer", None, "winter", "winter")
    assert found.of(3) == {"species": "pine", "season": "winter"}
    species, height, _ = found.attributes()
    assert species.classes == ("oak", "pine")
    assert height.is_numeric
    assert (height.low, height.high) == (7.5, 12.0)


def test_semicolons_a_byte_order_mark_and_classes_that_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("\ufeffName;digit:class\r\noak1;1\r\noak2;2\r\npine1;1\r\n", encoding="utf-8")
    found = labels_of(path)
    assert found is not None
    assert found.columns == {"digit": ("1", "2", "1", None)}
    write_labels(path, NAMES, found)
    assert labels_of(path) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,species\na,oak\n", "no column name .*id, species"),
        ("", "no column name"),
        (TREES + "elm9,elm,3,\n", "1 of its 5 names mean no instance.*elm9.*such as oak1"),
        (TREES + "oak1,oak,3,\n", "line 6: 'oak1' is in line 2 already"),
        (TREES.replace("12,", "tall,"), "line 4: height is 'tall', while others have numbers"),
        (TREES.replace("height", "height:number").replace("8,", "big,"), "line 3: height is 'big'"),
        ("name,species\noak1,a\noak2,b\npine1,c\n", "every instance has a species of its own"),
        ("name,species,species\noak1,a,b\n", "names the column 'species' twice"),
        ("name,species\noak1,a,b\n", "line 2: 3 cells where the first line has 2"),
        ("name,species:colour\noak1,a\n", "species says colour"),
    ],
)
def test_bad_tables_are_told_in_a_sentence(table: Callable[[str], Path], text: str, said: str) -> None:
    with pytest.raises(MNIFError, match=said) as caught:
        labels_of(table(text))
    assert str(caught.value).count("\n") == 0


def test_one_class_is_no_label_and_said(table: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert labels_of(table("name,species\noak1,oak\noak2,oak\n")) is None
    assert "species is oak for all, which is no label; it is left out" in capsys.readouterr().out


def test_rows_name_files_in_several_ways(tmp_path: Path) -> None:
    files = {"a-x": tmp_path / "a" / "x.obj", "b-x": tmp_path / "b" / "x.obj", "y": tmp_path / "y.obj"}
    (tmp_path / "labels.csv").write_text("name,kind\na/x.obj,one\nb/x,two\ny.obj,one\n")
    found = table_labels(read_labels(tmp_path / "labels.csv"), files, tmp_path, tuple(files))
    assert found == Labels({"kind": ("one", "two", "one")})
    (tmp_path / "labels.csv").write_text("name,kind\nx,one\ny,two\ny.obj,one\n")
    with pytest.raises(MNIFError, match="same instance"):
        table_labels(read_labels(tmp_path / "labels.csv"), files, tmp_path, tuple(files))
    (tmp_path / "labels.csv").write_text("name,kind\nx,one\ny,two\na/x,one\n")
    with pytest.raises(MNIFError, match="mean no instance, or several"):
        table_labels(read_labels(tmp_path / "labels.csv"), files, tmp_path, tuple(files))


# ----------------------------------------------------------------------------------------------------------- folders


def folders(*paths: str) -> Labels | None:
    root = Path("/data")
    return folder_labels({path: root / path for path in paths}, root)[0]


def test_folders_give_labels() -> None:
    assert folders("oak/a.glb", "oak/b.glb", "pine/c.glb", "pine/d.glb") == Labels(
        {"class": ("oak", "oak", "pine", "pine")}
    )
    modelnet = folders(
        *(f"ModelNet/{kind}/{split}/{k}.off" for kind in "ab" for split in ("train", "test") for k in "12")
    )
    assert modelnet == Labels({"class": ("a",) * 4 + ("b",) * 4})
    shapenet = folders(*(f"{synset}/{k}/models/model.obj" for synset in ("0269", "0295") for k in "123"))
    assert shapenet == Labels({"class": ("0269",) * 3 + ("0295",) * 3})


def test_folders_that_are_splits_or_hold_one_instance_give_none() -> None:
    assert folders("train/a.glb", "train/b.glb", "Test/c.glb", "val/d.glb") is None
    assert folders("a/model.obj", "b/model.obj", "c/model.obj") is None
    assert folders("a.obj", "b.obj") is None
    labels, note = folder_labels({k: Path(f"/data/chair/{k}.obj") for k in "ab"}, Path("/data"))
    assert labels is None
    assert "one folder (chair)" in note


def test_the_store_of_a_folder_keeps_them(tmp_path: Path) -> None:
    for kind in ("full", "empty"):
        for k in range(3):
            cells = np.zeros((8, 8, 8), bool)
            cells[1:4, 1:4, k + 1 : k + 4] = True
            (tmp_path / kind / "train").mkdir(parents=True, exist_ok=True)
            np.save(tmp_path / kind / "train" / f"{k}.npy", cells)
    store = open_grid_store(tmp_path, "train", "voxel", progress=False)
    expected = Labels({"class": ("empty",) * 3 + ("full",) * 3})
    assert store.labels == expected
    manifest = read_json(store.folder / "manifest.json")
    assert manifest["labels"] == expected.to_dict()
    write_json(store.folder / "manifest.json", {k: v for k, v in manifest.items() if k not in ("labels", "sha256")})
    assert open_grid_store(tmp_path, "train", "voxel", progress=False).labels == expected  # older than labels
    settings = GridDataSettings(modality="voxel", data=tmp_path)
    assert modality("voxel").training.open(settings).labels == expected
    settings.labels = "none"
    assert modality("voxel").training.open(settings).labels is None
    names = "".join(f"{name},{k % 2}\n" for k, name in enumerate(store.names))
    (tmp_path / "mine.csv").write_text("name,odd:class\n" + names)
    settings.labels = str(tmp_path / "mine.csv")
    assert modality("voxel").training.open(settings).labels == Labels({"odd": ("0", "1") * 3})


def test_our_own_data_comes_with_labels(tmp_path: Path) -> None:
    label_cars(tmp_path, CarCounts(12, 2, 2))
    found = read_labels(tmp_path / "labels.csv")
    assert len(found.names) == 16
    assert all(name.endswith(str(body)) for name, body in zip(found.names, found.labels.columns["body"]))  # type: ignore[union-attr]


# --------------------------------------------------------------------------------------------------------- the prior


def two_clusters(count: int = 60) -> tuple[torch.Tensor, Labels]:
    latents = torch.randn(count, 6, generator=torch.Generator().manual_seed(0))
    latents[::2, 0] += 5
    latents[1::2, 0] -= 5
    kinds = tuple("ab"[k % 2] for k in range(count))
    return latents, Labels({"kind": kinds, "size": tuple(float(k) for k in range(count))})


@pytest.fixture(scope="module")
def prior() -> LatentPrior:
    latents, labels = two_clusters()
    return LatentPrior.fit(latents, SMALL, progress=False, labels=labels)


def test_guidance_brings_samples_to_their_class(prior: LatentPrior) -> None:
    def share(guidance: float, kind: str = "a") -> float:
        drawn = prior.sample(64, wish=Wish({"kind": kind}, guidance))[:, 0]
        return float(((drawn > 0) == (kind == "a")).float().mean())

    assert 0.2 < share(0) < 0.8
    assert share(1) > 0.8
    assert share(3) > 0.95
    assert share(3, "b") > 0.95
    plain = prior.sample(8)
    assert torch.equal(prior.sample(8, wish=Wish({"kind": "a"}, 0)), plain)
    assert torch.equal(prior.sample(8, wish=Wish()), plain)
    assert not torch.equal(prior.sample(8, wish=Wish({"size": 3})), plain)


def test_a_prior_with_labels_is_read_back(prior: LatentPrior, tmp_path: Path) -> None:
    prior.save(tmp_path / "prior")
    again = LatentPrior.load(tmp_path / "prior")
    assert again.attributes == prior.attributes
    wish = Wish({"kind": "b", "size": 12.5})
    assert torch.equal(again.sample(3, wish=wish), prior.sample(3, wish=wish))
    assert torch.allclose(
        prior.sample(3, wish=wish, sampler="ddim", batch=2), prior.sample(3, sampler="ddim", wish=wish)
    )
    content = read_json(tmp_path / "prior" / "prior.json")
    for broken in (content["labels"][:1], [], "kind", [{"name": "kind", "classes": ["a"]}, content["labels"][1]]):
        write_json(tmp_path / "prior" / "prior.json", {**content, "labels": broken})
        with pytest.raises(MNIFError, match="train the prior again"):
            LatentPrior.load(tmp_path / "prior")


def test_unlabelled_priors_are_what_they_were(tmp_path: Path) -> None:
    latents, _ = two_clusters()
    plain = LatentPrior.fit(latents, SMALL, progress=False)
    # Of version 0.2 with these settings, to rounding.
    torch.testing.assert_close(plain.sample(1)[0, :3], torch.tensor(BEFORE), atol=2e-3, rtol=0)
    plain.save(tmp_path / "prior")
    content = read_json(tmp_path / "prior" / "prior.json")
    assert content["network"] == "residual"
    assert "labels" not in content
    content["training"].pop("label_dropout")  # a file older than labels
    write_json(tmp_path / "prior" / "prior.json", content)
    old = LatentPrior.load(tmp_path / "prior")
    assert torch.equal(old.sample(2), plain.sample(2))
    with pytest.raises(MNIFError, match="trained without labels"):
        old.sample(1, wish=Wish({"kind": "a"}))


BEFORE = [1.13835, 0.43263, 0.2067]


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ({"colour": "red"}, "no such attribute; there is kind: a, b; size: 0 to 59"),
        ({"kind": "c"}, "there is kind: a, b"),
        ({"size": "tall"}, "a number that training has seen .size: 0 to 59"),
        ({"size": 1e9}, "a number that training has seen"),
        ({"kind": "a", "Kind": "b"}, "asked for twice"),
    ],
)
def test_labels_that_are_not_there_list_those_that_are(prior: LatentPrior, label: Label, said: str) -> None:
    with pytest.raises(MNIFError, match=said):
        prior.sample(1, wish=Wish(label))


def test_bad_wishes() -> None:
    for guidance in (1000, -1, math.nan, math.inf):
        with pytest.raises(MNIFError, match="`guidance`"):
            Wish({"kind": "a"}, guidance)
    with pytest.raises(MNIFError, match="expected a dictionary"):
        Wish("oak")  # type: ignore[arg-type]


def test_what_does_not_go_with_labels(prior: LatentPrior) -> None:
    with pytest.raises(MNIFError, match="gaussian knows no labels"):
        prior.sample(1, sampler="gaussian", wish=Wish({"kind": "a"}))
    with pytest.raises(MNIFError, match="labels of 60 instances do not fit 5"):
        LatentPrior.fit(torch.randn(5, 3), SMALL, progress=False, labels=two_clusters()[1])


def test_unknown_values_are_nulls_and_dropout_makes_more(prior: LatentPrior) -> None:
    assert encode_label({"kind": "b"}, prior.attributes)[0] == 1
    assert math.isnan(encode_label({"kind": "b"}, prior.attributes)[1])
    assert isinstance(prior.denoiser, ConditionalDenoiser)
    noisy, times = torch.randn(4, prior.whitening.dim), torch.arange(4)
    nothing = torch.full((4, 2), math.nan)
    assert torch.equal(prior.denoiser(noisy, times), prior.denoiser(noisy, times, nothing))
    dropped = LabelDropout(0.2, 0)(torch.zeros(10_000, 2)).isnan()
    assert dropped.all(1).float().mean() == pytest.approx(0.2 + 0.8 * 0.04, abs=0.02)
    assert dropped[:, 0].float().mean() == pytest.approx(1 - 0.8 * 0.8, abs=0.02)


def test_a_sparse_class_is_not_rare_among_itself() -> None:
    latents = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    latents[30:] = 20 * latents[30:]
    assert float(Rarity(latents)(latents[30:]).min()) > 0.5
    assert float(Rarity(latents, range(30, 40))(latents[30:]).min()) < 0.3
    assert float(Rarity(latents, [31])(latents[30:]).max()) == 0


# ------------------------------------------------------------------------------------------------------------- data


def test_a_folder_of_meshes_becomes_data_with_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, size in (("long", 3.0), ("short", 1.0)):
        for k in range(3):
            (tmp_path / "in" / kind).mkdir(parents=True, exist_ok=True)
            trimesh.creation.box((size + 0.1 * k, 1, 1)).export(tmp_path / "in" / kind / f"{kind}{k}.ply")
    (tmp_path / "in" / "long" / "broken.ply").write_bytes(b"ply\n")

    def labels(*names: str) -> dict[str, str]:
        folder = tmp_path / "-".join(("out", *names))
        data.main(data.FromMeshes(tmp_path / "in", folder, voxels=8, workers=1))
        table = read_labels(folder / "labels.csv")
        assert table.labels is not None
        assert "other file" not in capsys.readouterr().out
        return dict(zip(table.names, *table.labels.columns.values()))

    assert labels() == {f"{kind}{k}": kind for kind in ("long", "short") for k in range(3)}
    rows = "".join(f"{kind}/{kind}{k}.ply,{k % 2}\n" for kind in ("long", "short") for k in range(3))
    (tmp_path / "in" / "labels.csv").write_text("name,odd:class\nlong/broken.ply,1\n" + rows)
    assert labels("table") == {f"{kind}{k}": str(k % 2) for kind in ("long", "short") for k in range(3)}
    (tmp_path / "in" / "labels.csv").write_text("name,odd:class\nnothing,1\n" + rows)
    with pytest.raises(MNIFError, match="1 of its 7 names mean no instance"):
        labels("wrong")


def test_scenes_with_cameras_have_them_by_name(tmp_path: Path) -> None:
    for split, names in {"train": "abcd", "test": "ef"}.items():
        for name in names:
            (tmp_path / f"things_{split}" / name / "rgb").mkdir(parents=True)
            (tmp_path / f"things_{split}" / name / "pose").mkdir()
    (tmp_path / "labels.csv").write_text("name,kind\na,x\nb,y\nc,x\nd,y\ne,x\n")
    settings = SceneDataSettings(data=tmp_path)
    training = modality("radiance").training.open(settings)
    training.listed = ("a", "b", "c", "d")  # type: ignore[attr-defined]
    assert training.labels == Labels({"kind": ("x", "y", "x", "y")})
    (tmp_path / "labels.csv").write_text("name,kind\na,x\nb,y\nnowhere,x\nd,y\ne,x\n")
    again = modality("radiance").training.open(settings)
    again.listed = training.listed  # type: ignore[attr-defined]
    with pytest.raises(MNIFError, match="nowhere"):
        _ = again.labels

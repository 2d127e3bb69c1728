"""The sweep over bases, latent sizes and coefficients: it learns, resumes, refuses foreign results, and is drawn."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import write_tiny_surfaces

from mnif_nerf import modalities
from mnif_nerf.data.stores.grid_store import store_of
from mnif_nerf.diagnosis import sweep
from mnif_nerf.diagnosis.sweep import SweepConfig, field_spec, run_sweep, train_field
from mnif_nerf.diagnosis.sweep_curves import draw_curves, draw_relations, relations, relations_table, sweep_table
from mnif_nerf.errors import MNIFError
from mnif_nerf.modalities.grid_sweep import GridSplit

TINY = SweepConfig(
    bases=(1, 3),
    latent_dims=(2,),
    width=8,
    hidden_layers=1,
    steps=4,
    instances_per_step=3,
    points_per_instance=40,
    fit_steps=3,
    prior_steps=2,
    unseen_instances=4,
)


def boxes(count: int, seed: int) -> GridSplit:
    """Boxes of random size in 8^3 voxels."""
    g = np.random.default_rng(seed)
    grids = []
    for low, high in zip(g.integers(0, 3, (count, 3)), g.integers(5, 8, (count, 3))):
        grid = np.zeros((8, 8, 8), dtype=bool)
        grid[low[0] : high[0], low[1] : high[1], low[2] : high[2]] = True
        grids.append(grid)
    return GridSplit(store_of(grids, "voxel"), modalities.get("voxel"))


def slopes(count: int, seed: int) -> GridSplit:
    """Pictures of 12x12 grey pixels that rise in some direction."""
    g = np.random.default_rng(seed)
    at = np.linspace(-1, 1, 12)
    pictures = [
        np.rint(127 + 60 * (a * at[:, None, None] + b * at[None, :, None])).astype(np.uint8)
        for a, b in g.uniform(-1, 1, (count, 2))
    ]
    return GridSplit(store_of(pictures, "image"), modalities.get("image"))


MAKERS = {"voxel": boxes, "image": slopes}


def without_clock(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]


@pytest.fixture(scope="module", params=["voxel", "image"])
def swept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    make = MAKERS[request.param]
    folder, calls = tmp_path_factory.mktemp("sweep"), []
    train, unseen = make(10, 0), make(6, 1)
    rows = run_sweep(train, unseen, folder, TINY, lambda: calls.append(1))
    return {"modality": request.param, "folder": folder, "rows": rows, "calls": calls, "stores": (train, unseen)}


def test_one_row_and_one_file_per_point(swept: dict[str, Any]) -> None:
    rows, voxel = swept["rows"], swept["modality"] == "voxel"
    assert len(rows) == len(swept["calls"]) == 4
    found = [(row["bases"], row["latent_dim"], row["coefficients"]) for row in rows]
    assert found == TINY.points
    assert len(list(swept["folder"].iterdir())) == 4
    for row in rows:
        assert all(isinstance(v, (int, str)) or math.isfinite(v) for v in row.values())
        assert ("unseen_iou" in row) == voxel
        assert {"sample_1nna", "real_1nna"} <= set(row) if voxel else "sample_kd_random-conv" in row
        if row["bases"] == 1:
            assert row["output_rank"] == pytest.approx(1)
            assert row["output_correlation"] == 0
        assert 1 <= row["output_rank"] <= row["bases"] + 1e-6
    # Network-wise coefficients need a smaller projection.
    assert rows[0]["parameters"] - rows[1]["parameters"] == 2 * (2 + 1)  # D + 1 for each layer but one
    # The yardstick is of the data alone.
    assert len({tuple(v for k, v in row.items() if k.startswith("real_")) for row in rows}) == 1


def test_a_finished_sweep_is_read_and_not_run(swept: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "score_point", lambda *_: pytest.fail("ran again"))
    calls: list[int] = []
    assert run_sweep(*swept["stores"], swept["folder"], TINY, lambda: calls.append(1)) == swept["rows"]
    assert len(calls) == 4


def test_an_interrupted_sweep_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores, done = (boxes(6, 0), boxes(4, 1)), []

    def stop() -> None:
        done.append(1)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(*stores, tmp_path, TINY, stop)
    scored, real = [], sweep.score_point

    def spy(*arguments: Any) -> dict[str, Any]:
        scored.append(arguments[2].num_bases)
        return real(*arguments)

    monkeypatch.setattr(sweep, "score_point", spy)
    torch.manual_seed(5)  # of no influence
    rows = run_sweep(*stores, tmp_path, TINY)
    assert scored == [3, 3]  # the two that were missing
    assert without_clock(rows) == without_clock(run_sweep(*stores, tmp_path / "other", TINY))


def test_results_of_another_sweep_are_refused(swept: dict[str, Any], tmp_path: Path) -> None:
    train, unseen = swept["stores"]
    for config, message in (
        (dataclasses.replace(TINY, steps=5), r"made with steps 4, now 5"),
        (dataclasses.replace(TINY, seed=1), r"made with seed 0, now 1"),
    ):
        with pytest.raises(MNIFError, match=message):
            run_sweep(train, unseen, swept["folder"], config)
    with pytest.raises(MNIFError, match="made with train_data 10 instances"):
        run_sweep(MAKERS[swept["modality"]](10, 7), unseen, swept["folder"], TINY)
    # Another grid over the same settings takes what is there.
    assert run_sweep(train, unseen, swept["folder"], dataclasses.replace(TINY, bases=(3,))) == swept["rows"][2:]
    name = "m001-d002-layer-wise.json"
    for content, message in (
        ("{", "not valid JSON"),
        ("[1]", "where a description is expected"),
        ("{}", "not a result of a sweep"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(MNIFError, match=message):
            run_sweep(train, unseen, tmp_path, TINY)
    stored = json.loads((swept["folder"] / name).read_text())
    assert stored["settings"]["resolution"] == max(train.shape)


@pytest.mark.parametrize("modality", ["voxel", "image"])
def test_training_learns_and_fits_what_it_has_not_seen(modality: str, tmp_path: Path) -> None:
    stores = (MAKERS[modality](12, 0), MAKERS[modality](4, 1))
    one = {"bases": (4,), "coefficients": ("layer-wise",), "latent_dims": (4,)}
    length = {"steps": 250, "fit_steps": 60, "width": 16, "points_per_instance": 0, "field_lr": 3e-3}
    config = dataclasses.replace(TINY, **one, **length)
    (row,) = run_sweep(*stores, tmp_path / "learned", config)
    # Without latents, every instance is the same: what all of them have in common.
    (same,) = run_sweep(*stores, tmp_path / "common", dataclasses.replace(config, latent_lr=1e-9, fit_lr=1e-9))
    assert row["train_psnr"] > same["train_psnr"] + 2
    assert row["unseen_psnr"] > same["unseen_psnr"] + 1
    if modality == "voxel":
        assert row["train_iou"] > same["train_iou"] + 0.15


def test_decoded_values_are_those_of_the_data() -> None:
    store = slopes(6, 0)
    config = dataclasses.replace(TINY, steps=300, points_per_instance=0, width=16)
    field, latents = train_field(store, field_spec(store, 4, 2, "layer-wise", config), config)
    pictures = store.decode(field, latents)
    truth = torch.from_numpy(np.stack([store.store.values(k) for k in range(6)])).float() / 255
    assert pictures.shape == (6, 1, 144)
    assert (pictures.reshape(6, 12, 12) - truth[..., 0]).abs().mean() < 0.03
    assert not any(parameter.requires_grad for parameter in field.parameters())


def test_sets_are_compared_as_the_modality_asks() -> None:
    store = boxes(8, 0)
    truth = store.truth()
    same = store.set_scores(truth, truth)
    assert same["1nna"] == 0.0  # the nearest of everyone is its copy in the other set
    assert same["cov"] == 1.0
    empty = store.set_scores(torch.zeros_like(truth), truth)
    assert empty["1nna_fake"] == 1.0
    assert empty["cov"] == pytest.approx(1 / 8)
    pictures = slopes(8, 0)
    values = pictures.truth()
    noise = torch.rand(values.shape, generator=torch.Generator().manual_seed(0))
    near, far = (pictures.set_scores(other, values)["kd_random-conv"] for other in (values.flip(0), noise))
    assert far > near
    assert far > 0


def test_unfit_data_and_settings(tmp_path: Path) -> None:
    with pytest.raises(MNIFError, match="unseen instances have modality image"):
        run_sweep(boxes(4, 0), slopes(4, 0), tmp_path, TINY)
    for settings, message in (
        ({"bases": ()}, "bases is empty"),
        ({"steps": 0}, "steps is 0"),
        ({"unseen_instances": 3}, "at least 4"),
    ):
        with pytest.raises(MNIFError, match=message):
            SweepConfig(**settings)
    with pytest.raises(MNIFError, match="6 unseen instances beside 5 for training"):
        run_sweep(boxes(5, 0), boxes(6, 1), tmp_path, dataclasses.replace(TINY, unseen_instances=6))
    with pytest.raises(MNIFError, match="3 unseen instances"):
        run_sweep(boxes(5, 0), boxes(3, 1), tmp_path, TINY)
    with pytest.raises(MNIFError, match="`coefficients` of the field is 'other'"):
        run_sweep(boxes(4, 0), boxes(4, 1), tmp_path, dataclasses.replace(TINY, coefficients=("other",)))


# --- table and curves --------------------------------------------------------------------------------------


def made_up(modality: str = "voxel") -> list[dict[str, Any]]:
    """A grid where rank, and with it reconstruction, rises with the bases, and samples get worse."""
    rows = []
    for bases, latent_dim, coefficients in SweepConfig().points:
        good = math.log2(bases + 1) * (1 + 0.01 * latent_dim) + (coefficients == "layer-wise")
        row = {"modality": modality, "bases": bases, "latent_dim": latent_dim, "coefficients": coefficients}
        row |= {"parameters": 10 * bases, "train_seconds": 1.0, "seconds": 2.0, "dead": 0.0}
        row |= {"output_rank": good, "output_correlation": -good, "weight_rank": 1.0, "coefficient_rank": good**2}
        row |= {f"{part}_{kind}": 10 * good for part in ("train", "unseen") for kind in ("iou", "psnr")}
        row |= {"sample_1nna": 0.5 + good / 50, "sample_cov": 0.5, "real_1nna": 0.45, "real_cov": 0.6}
        row |= {"sample_kd_random-conv": good, "real_kd_random-conv": 0.0}
        rows.append(row)
    return rows


@pytest.mark.parametrize("modality", ["voxel", "image"])
def test_curves_show_every_number_and_need_no_colour(modality: str, tmp_path: Path) -> None:
    rows = made_up(modality)
    figure = draw_curves(rows)
    assert len(figure.axes) == 6
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 4]
    assert len(lines) == 6
    shown = "train_iou" if modality == "voxel" else "train_psnr"
    for line in lines:
        name = line.get_label()
        mine = [row for row in rows if name == f"latents of {row['latent_dim']}, {row['coefficients']}"]
        assert list(line.get_xdata()) == [1, 4, 16, 64]
        assert list(line.get_ydata()) == [row[shown] for row in mine]
    looks = {(line.get_marker(), line.get_linestyle()) for line in lines}
    assert len(looks) == 6  # told apart without shade
    assert all(0 <= float(line.get_color()) <= 0.7 for line in lines)  # shades of grey, none too light
    dotted = [line for panel in figure.axes for line in panel.lines if line.get_label() == "training instances"]
    assert len(dotted) == 1
    for drawn, name in ((figure, "curves"), (draw_relations(rows), "relations")):
        for ending in ("png", "svg"):
            drawn.savefig(tmp_path / f"{name}.{ending}")
            assert (tmp_path / f"{name}.{ending}").stat().st_size > 1000


def test_relations_are_rank_correlations_with_quality() -> None:
    found = {(one["diversity"], one["quality"]): one["correlation"] for one in relations(made_up())}
    assert found["output_rank", "unseen_iou"] == pytest.approx(1)
    assert found["output_correlation", "unseen_iou"] == pytest.approx(-1)
    assert found["output_rank", "sample_1nna"] == pytest.approx(-1)  # turned: 0.5 is best
    assert found["weight_rank", "unseen_iou"] is None
    images = {(one["diversity"], one["quality"]): one["correlation"] for one in relations(made_up("image"))}
    assert images["coefficient_rank", "sample_kd_random-conv"] == pytest.approx(-1)
    # One basis has no diversity, and is left out.
    rows = [{**row, "output_rank": 1000.0} if row["bases"] == 1 else row for row in made_up()]
    assert relations(rows)[0]["correlation"] == pytest.approx(1)


def test_tables() -> None:
    rows = made_up()
    table, yardstick = sweep_table(rows)
    lines = [line for line in table.markdown().splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(rows)
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| 1 | 4 | layer-wise | 10 |")
    assert "1nna 0.4500" in yardstick
    assert "| +1.00 |" in relations_table(rows).markdown()
    assert "| - |" in relations_table(rows).markdown()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It writes a report, goes on from what is there, and says what is missing."""
    from mnif_nerf.cli.sweep import SweepOptions, main

    generator = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 4)):
        (tmp_path / "data" / split).mkdir(parents=True)
        for index in range(count):
            cells = generator.random((6, 6, 6)) > 0.6
            np.save(tmp_path / "data" / split / f"{split}{index}.npy", cells)
    options = SweepOptions(
        tmp_path / "data", resolution=6, bases=(1, 2), latent_dims=(2,), coefficients=("layer-wise",), steps=2,
        output=tmp_path / "out",
    )  # fmt: skip
    assert main(options) == tmp_path / "out"
    assert "best unseen iou" in capsys.readouterr().out
    first = json.loads((tmp_path / "out" / "sweep.json").read_text())["sweep"]["rows"]
    assert [row["bases"] for row in first] == [1, 2]
    assert {"sweep_curves.png", "sweep_curves.svg", "report.html", "report.md"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    main(options)
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["sweep"]["rows"] == first
    shutil.rmtree(tmp_path / "data" / "test")
    with pytest.raises(MNIFError, match="no split test or val"):
        main(options)


def test_the_fields_are_those_of_the_shipped_methods() -> None:
    """Pictures end in a linear layer, and everything but the swept sizes is the -lite method's."""
    from mnif_nerf.pipelines.methods import method_of

    for store in (boxes(4, 0), slopes(4, 0)):
        shipped = method_of(store.kind.name).new_run().pipeline.model
        sizes = (shipped.num_bases, shipped.latent_dim, shipped.coefficients)
        config = dataclasses.replace(TINY, width=shipped.width, hidden_layers=shipped.hidden_layers)
        grid = {"resolution": max(store.shape), "channels": store.store.channels}
        assert field_spec(store, *sizes, config) == store.kind.training.field_spec(shipped, grid)


def test_points_of_meshes(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder says what it holds; balls are given back, with their colours where they have some."""
    from mnif_nerf.cli.sweep import SweepOptions, main

    for name, color in (("painted", True), ("bare", False)):
        data = write_tiny_surfaces(tmp_path / name, {"train": 24, "test": 4}, color)
        monkeypatch.setattr(sweep, "_BASIS_POINTS", 100)
        options = SweepOptions(
            data, resolution=12, bases=(8,), latent_dims=(4,), coefficients=("layer-wise",), steps=200,
            output=tmp_path / f"{name}-out",
        )  # fmt: skip
        main(options)
        assert f"next: ns-train mnif-sdf-lite --data {data}" in capsys.readouterr().out
        (row,) = json.loads((options.output / "sweep.json").read_text())["sweep"]["rows"]
        assert row["modality"] == "sdf"
        assert row["train_iou"] > 0.6
        assert row["unseen_iou"] > 0.4
        assert ("unseen_color" in row) == color
        assert {"sample_1nna", "real_1nna", "sample_cov", "output_rank"} <= set(row)
        assert 1 <= row["output_rank"] <= 8
    with pytest.raises(MNIFError, match="made with channels 1, now 4"):
        main(dataclasses.replace(options, data=tmp_path / "painted"))
    with pytest.raises(MNIFError, match="no sweep over models of objects; use voxels, pictures or points of meshes"):
        main(SweepOptions(data, modality="radiance"))


def test_the_solids_beside_pictures_are_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mnif_nerf.cli.sweep import SweepOptions, main

    monkeypatch.setattr(modalities, "from_data", lambda root: modalities.get("radiance"))
    for split, count in (("train", 4), ("test", 4)):
        (tmp_path / "occupancy" / split).mkdir(parents=True)
        for index in range(count):
            np.save(tmp_path / "occupancy" / split / f"{index}.npy", np.arange(125).reshape(5, 5, 5) % (2 + index) == 0)
    options = SweepOptions(
        tmp_path, resolution=5, bases=(1,), latent_dims=(2,), coefficients=("layer-wise",), steps=2,
        output=tmp_path / "out",
    )  # fmt: skip
    main(options)
    assert "solids beside their pictures are taken" in capsys.readouterr().out

"""Figures and verdict of a tree of conditional draws, in Python and on the command line."""

import json

import numpy as np
import pytest
import xarray as xr

import inference
from inference.cli.app import main
from inference.reporting.sampling_figures import coverage, denoising_path, draws_beside

RANKS = {"x": (np.arange(200)[:, None] + np.full(3, 0.5)) / 200}


@pytest.fixture(autouse=True)
def untuned(monkeypatch):
    monkeypatch.setattr("inference.fitting.runtime.tune_runtime", lambda **settings: {})


def tree_of(shape=(3,), method="tds", spread=0.0, seed=0):
    """As condition writes it; ``spread`` moves the log p(y) of the runs apart."""
    rng = np.random.default_rng(seed)
    dims = [f"x_dim_{i}" for i in range(len(shape))]
    stats = {
        "log_weight": (("chain", "particle"), 0.1 * rng.normal(size=(4, 200))),
        "ess": (("chain", "step"), np.full((4, 6), 150.0)),
        "resampled": (("chain", "step"), np.ones((4, 6), bool)),
        "log_evidence": (("chain",), spread * np.asarray([-1.0, -0.3, 0.3, 1.0])),
    }
    groups = {
        "/posterior": {"x": (("chain", "draw", *dims), rng.normal(size=(4, 200, *shape)))},
        "/sample_stats": stats if method != "nuts" else {"diverging": (("chain", "draw"), np.zeros((4, 200), bool))},
    }
    if method != "nuts":
        path = rng.normal(size=(4, 6, 8, *shape)).astype("float32")
        groups["/denoising_path"] = {"x": (("chain", "step_down", "particle_shown", *dims), path)}
    tree = xr.DataTree.from_dict({name: xr.Dataset(held) for name, held in groups.items()})
    tree.attrs["method"] = method
    return tree


@pytest.fixture
def saved(tmp_path):
    tree_of().to_netcdf(tmp_path / "inpainted.nc", engine="h5netcdf")
    np.savez(tmp_path / "ranks.npz", **RANKS)
    np.savez(tmp_path / "bad.npz", x=np.full((200, 3), 0.02))
    return tmp_path


def test_diagnose_takes_a_tree():
    table = inference.diagnose(tree_of(), ranks=RANKS).set_index("check")
    assert set(table["verdict"]) == {"ok"}
    assert {"R-hat over runs (largest)", "log p(y), spread over runs", "simulated ranks (joint p-value)"} <= set(
        table.index
    )
    for given in ({"x": np.zeros(3)}, {"train": np.zeros(3)}):
        with pytest.raises(ValueError, match="diagnosed by itself"):
            inference.diagnose(tree_of(), **given)
    with pytest.raises(ValueError, match="on held-out data"):
        inference.diagnose(object())
    with pytest.raises(ValueError, match="inference.calibrate"):
        inference.diagnose(object(), np.zeros(3), ranks=RANKS)


@pytest.mark.parametrize(("spread", "verdict"), [(0.5, "ok"), (1.5, "warn"), (4.0, "fail")])
def test_runs_that_disagree_about_the_evidence(spread, verdict):
    row = inference.sampler_verdict(tree_of(spread=spread)).set_index("check").loc["log p(y), spread over runs"]
    assert row["verdict"] == verdict
    assert row["value"] == pytest.approx(spread * np.sqrt(2.18 / 3))


def test_what_was_not_checked_is_said():
    said = inference.sampler_verdict(tree_of()).attrs["unchecked"]
    assert len(said) == 1 and "method='tds'" in said[0] and "ranks=ranks" in said[0]
    assert inference.sampler_verdict(tree_of(), ranks=RANKS).attrs["unchecked"] == []
    chains = inference.sampler_verdict(tree_of(method="nuts").isel(chain=[0])).attrs["unchecked"]
    assert [line.split(":")[0] for line in chains] == [
        "whether runs agree (R-hat)", "whether the law is right (k-hat)",
        "whether intervals hold the truth as often as they say (simulated problems)",
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(3,), (2,), (4, 5)])
def test_figures_show_the_numbers_of_the_tree(shape):
    tree = tree_of(shape)
    truth = np.zeros(shape)
    figure, path = draws_beside(tree, truth), denoising_path(tree, truth)
    x, down = tree["posterior"]["x"].values, tree["denoising_path"]["x"].values
    if len(shape) == 2:
        np.testing.assert_allclose(figure.axes[1].images[0].get_array(), x.mean((0, 1)))
        np.testing.assert_allclose(figure.axes[2].images[0].get_array(), x.std((0, 1)))
        np.testing.assert_allclose(path.axes[5].images[0].get_array(), down[0, 5, 0])
    else:
        np.testing.assert_allclose(path.axes[1].lines[3].get_ydata(), down[0, :, 3, 1])
    if shape == (2,):
        np.testing.assert_allclose(figure.axes[0].collections[1].get_offsets(), x[1])
    if shape == (3,):
        segments = np.asarray(figure.axes[0].collections[0].get_segments())
        np.testing.assert_allclose(segments[:, :, 1].T, np.quantile(x, [0.05, 0.95], axis=(0, 1)))
    with pytest.raises(ValueError, match="truth has shape"):
        draws_beside(tree, np.zeros(7))
    with pytest.raises(ValueError, match="no denoising path"):
        denoising_path(tree_of(method="nuts"))


def test_coverage_of_uniform_and_of_narrow_ranks():
    (axis,) = coverage({"right": RANKS["x"], "narrow": np.full(50, 0.99)}).axes
    right, narrow = (line.get_ydata() for line in axis.lines[1:])
    np.testing.assert_allclose(right, np.linspace(0.05, 0.95, 19), atol=1e-9)
    assert (narrow == 0).all()
    with pytest.raises(ValueError, match="no ranks"):
        coverage({})


def test_the_command_line_reads_saved_draws(saved, capsys):
    assert main(["diagnose", str(saved / "inpainted.nc")]) == 0
    out = capsys.readouterr().out
    assert "4 runs of 200 draws by tds" in out and "not checked: whether intervals hold" in out
    assert main(["diagnose", str(saved / "inpainted.nc"), "--ranks", str(saved / "bad.npz"), "--json"]) == 0
    rows = {row["check"]: row["verdict"] for row in json.loads(capsys.readouterr().out)}
    assert rows["simulated ranks (joint p-value)"] == "fail" and rows["R-hat over runs (largest)"] == "ok"
    assert main(["report", str(saved / "inpainted.nc")]) == 0
    page = (saved / "inpainted.html").read_text()
    assert "Not checked" in page and "could not be drawn" not in page and page.count("<img") == 2
    assert (saved / "inpainted_figures" / "denoising_path.png").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["diagnose", "absent.nc"], "no file 'absent.nc'"),
        (["diagnose", "inpainted.nc", "--particles", "9"], "--particles is an option of run folders"),
        (["diagnose", ".", "--ranks", "ranks.npz"], "--ranks belong to a file"),
        (["diagnose", "inpainted.nc", "--ranks", "inpainted.nc"], "holds no ranks"),
        (["report", "ranks.nc"], "is not a netCDF file"),
        (["report", "run/posterior.nc"], "is the posterior of a run: ppl-models report"),
    ],
)
def test_what_is_not_saved_draws_is_refused(words, said, saved, monkeypatch, capsys):
    monkeypatch.chdir(saved)
    (saved / "run").mkdir()
    (saved / "run" / "run.json").write_text("{}")
    (saved / "run" / "posterior.nc").write_bytes(b"")
    (saved / "ranks.nc").write_bytes((saved / "ranks.npz").read_bytes())
    assert main(words) == 2
    assert said in " ".join(capsys.readouterr().err.split())

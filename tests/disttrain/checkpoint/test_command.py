"""``disttrain ckpt``."""

import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner

import disttrain as dt
from disttrain.checkpoint.command import ckpt
from disttrain.checkpoint.cost import interval


@pytest.fixture(autouse=True)
def released():
    yield
    dt.checkpoint.close()


def run(*args, code=0):
    found = CliRunner().invoke(ckpt, [str(a) for a in args])
    assert found.exit_code == code, found.output
    return found.output


def write(folder, *steps, change=0.0, **options):
    for step in steps:
        dt.manual_seed(step)
        model = dt.nn.Sequential(dt.nn.Linear(3, 4), dt.nn.Linear(4, 2))
        with dt.no_grad():
            model[1].weight[1, 2] += change
        optimizer = dt.optim.SGD(model.parameters(), lr=0.1)
        dt.checkpoint.save(
            folder,
            step=step,
            model=model,
            optimizer=optimizer,
            note={"a": [step]},
            metric=1 / (1 + step),
            **options,
        )
        dt.checkpoint.close(folder)
    return model


def test_ls_names_checkpoints_the_best_one_and_how_often_to_save(tmp_path):
    write(tmp_path, 10, 20)

    lines = run("ls", tmp_path, "--mtbf", "8").splitlines()

    assert lines[0].split() == ["CHECKPOINT", "STEP", "SAVED", "SIZE", "RANKS", "METRIC"]
    assert [line.split()[0] for line in lines[1:3]] == ["00001-step-10", "00002-step-20"]
    assert lines[2].endswith("best")
    assert not lines[1].endswith("best")
    assert "if something fails every 8 h, save every " in lines[3]


def test_ls_says_which_cannot_be_read(tmp_path):
    write(tmp_path, 1)
    (tmp_path / "00002-step-2").mkdir()

    assert "00002-step-2  2     cannot be read: " in run("ls", tmp_path)
    assert "has no checkpoints" in run("ls", tmp_path / "00002-step-2", code=1)


def test_show_says_what_is_in_it(tmp_path):
    write(tmp_path, 7)

    out = run("show", tmp_path)

    assert "step 7, saved " in out
    assert "by 1 rank in generation 0" in out
    assert "note: value\n  {'a': [7]}" in out
    assert "  model/0.weight  float32  [4, 3]  48 B" in out


def test_verify_names_what_is_damaged(tmp_path):
    write(tmp_path, 1, 2)
    assert run("verify", tmp_path).count(": whole, 4 tensors, ") == 2
    part = tmp_path / "00002-step-2" / "part-00000.safetensors"
    part.write_bytes(part.read_bytes()[:-1] + b"\xaa")

    out = run("verify", tmp_path, code=1)

    assert out.count(": whole") == 1
    assert "of step 2" in out
    assert "checksum differs for tensor" in out
    assert "whole" in run("verify", tmp_path / "00001-step-1")


def test_diff_names_the_first_tensor_that_differs_and_the_place(tmp_path):
    write(tmp_path / "a", 5)
    write(tmp_path / "b", 5)
    write(tmp_path / "c", 5, change=1.0)
    write(tmp_path / "d", 6)

    assert run("diff", tmp_path / "a", tmp_path / "b") == "equal\n"
    out = run("diff", tmp_path / "a", tmp_path / "c", code=1)
    assert out.startswith(
        "the first tensor that differs is model/1.weight: 1 of 8 elements, the first at [1, 2]: "
    )
    assert len(out.splitlines()) == 1
    out = run("diff", tmp_path / "a", tmp_path / "d", code=1)
    assert "4 of 4 tensors differ: model/0.bias, model/0.weight, model/1.bias, model/1.weight" in out
    assert "note: what is no tensor differs" in out
    assert "random: the states of the generators differ" in out


def test_diff_names_what_only_one_has_and_shapes(tmp_path):
    for name, model in (("a", dt.nn.Linear(2, 2)), ("b", dt.nn.Linear(3, 2, bias=False))):
        dt.checkpoint.save(tmp_path / name, step=1, model=model)
    dt.checkpoint.close()

    out = run("diff", tmp_path / "a", tmp_path / "b", code=1)

    assert "only in the first: model/bias" in out
    assert "model/weight: float32 [2, 2] in the first, float32 [2, 3] in the second" in out


@pytest.mark.parametrize("ranks", [1, 3])
def test_reshard_writes_the_same_in_other_files(tmp_path, ranks):
    model = write(tmp_path / "a", 5)

    out = run("reshard", tmp_path / "a", tmp_path / "b", "--ranks", ranks)

    assert out == f"{tmp_path / 'b' / '00001-step-5'}\n"
    assert len(list((tmp_path / "b" / "00001-step-5").glob("part-*"))) == ranks
    assert run("diff", tmp_path / "a", tmp_path / "b") == "equal\n"
    again = dt.nn.Sequential(dt.nn.Linear(3, 4), dt.nn.Linear(4, 2))
    dt.checkpoint.load(tmp_path / "b", model=again)
    assert (again[1].weight == model[1].weight).all()


def test_export_writes_what_others_read(tmp_path):
    model = write(tmp_path / "a", 5)
    expected = {n: t.numpy() for n, t in model.state_dict().items()}

    assert "4 tensors" in run("export", tmp_path / "a", tmp_path / "x.safetensors")
    run("export", tmp_path / "a", tmp_path / "x.npz")

    with np.load(tmp_path / "x.npz") as archive:
        arrays = dict(archive)
    for found in (safetensors.numpy.load_file(tmp_path / "x.safetensors"), arrays):
        assert sorted(found) == sorted(expected)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)
    assert "is there already" in run("export", tmp_path / "a", tmp_path / "x.npz", code=1)
    assert "no part 'ema'; it has " in run(
        "export", tmp_path / "a", tmp_path / "y.npz", "--part", "ema", code=1
    )
    assert "must end with" in run("export", tmp_path / "a", tmp_path / "y.pt", code=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "x.npz", "x.safetensors"]


def test_the_interval_is_youngs_where_saves_are_cheap_and_loses_the_least_time():
    assert interval(1.0, 28_440.0) == pytest.approx((2 * 28_440) ** 0.5, rel=0.01)
    assert interval(10.0, 28_440.0) == pytest.approx(12.4 * 60, rel=0.02)

    def lost(seconds, cost, mtbf):
        """Daly's expected time for a unit of work, restarts being free."""
        return mtbf * (np.exp((seconds + cost) / mtbf) - 1) / seconds

    for cost, mtbf in ((1, 100), (30, 300), (5, 10_000)):
        best = interval(cost, mtbf)
        assert lost(best, cost, mtbf) <= 1.001 * min(
            lost(best * f, cost, mtbf) for f in np.linspace(0.3, 3, 200)
        )
    assert interval(500, 100) == 100
    with pytest.raises(ValueError, match="must be positive"):
        interval(0, 1)

"""A layer that pruning leaves no more weights than `pruning.min_per_layer` is named, in training and in the report."""

from doors import TINY, door
from rpg_ms.pruning.allocation import at_floor


def test_a_layer_is_at_its_floor_if_it_has_lost_all_it_may_lose():
    assert at_floor(1, 100, 1) and at_floor(0, 100, 0)
    assert not at_floor(2, 100, 1) and not at_floor(1, 1, 1) and not at_floor(5, 5, 10)


def test_training_and_report_name_it(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    # A convolution of 144 weights must keep 200, so all of it: it has lost nothing. Wider ones come down to 200.
    keys = ["data.limit=192", "train.epochs=4", "pruning.density=0.025", "pruning.min_per_layer=200"]
    result = door("train.py", "--config", "tiny.yaml", "--output_dir", "out", "--set", *keys, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    lines = [line for line in result.stdout.splitlines() if line.startswith("warning: ")]
    named = [name for line in lines for name in line.split("(200): ")[1].split("; ")[0].split(", ")]
    assert named and len(named) == len(set(named)), "each once"
    assert "conv1" not in named
    assert all("pruning.min_per_layer (200)" in line and "pruning.exclude" in line for line in lines)

    result = door("report", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    page = (tmp_path / "out/report/report.html").read_text()
    assert "Down to pruning.min_per_layer (200): " in page
    assert page.count("(at its floor)") >= len([name for name in named if "and " not in name])

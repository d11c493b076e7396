"""What a comparison writes: tables, pages and CSV files of hand-made runs."""

import csv

from rpg_ms.compare.results import csv_text, means, page, section, table


def made_up(**changes):
    """A document of hand-made runs: three methods, two densities, up to three seeds."""

    def run(label, density, seed, top1=None, minutes=1.0, **more):
        figures = (
            {"status": "missing"}
            if top1 is None
            else {
                "status": "finished",
                "top1": top1,
                "density": density,
                "nonzero": 1,
                "prunable": 9,
                "steps": 5,
                "seconds": 60 * minutes,
                "environment": 0,
            }
        )
        if label == "c" and top1 is not None:  # a|b is of an earlier version, whose summaries had no rank
            figures["rank"] = 50 + 10 * seed
        return {
            "label": label,
            "method": "gmp",
            "settings": ["rank.lambda=0", "a.b=[1, 2]"],
            "target_density": density,
            "seed": seed,
            **figures,
            **more,
        }

    document = {
        "command": "rpg-ms compare --config x.yaml",
        "config": "x.yaml",
        "settings": [],
        "evaluated_on": "test",
        "date": "2024-02-29",
        "environments": [
            {
                "machine": {"cpu": "Some CPU", "cores": 2, "memory_gb": 8, "platform": "Linux"},
                "versions": {"python": "3.11.7", "mindspore": "2.7.0"},
            }
        ],
        "runs": [
            run("a|b", 0.02, 0, 90.0, 2),
            run("a|b", 0.02, 1, 92.0, 3),
            run("a|b", 0.02, 2, 94.0, 4),
            run("a|b", 0.005, 0, 80.123, 3),
            run("c", 0.02, 0, 91.0),
            run("c", 0.02, 2, 95.0),
            run("c", 0.02, 1, status="failed", reason="out of luck"),
            run("c", 0.005, 0, 80.121),
            run("d", 0.02, 0, status="failed", reason="x"),
            run("d", 0.005, 0),
        ],
    }
    return {**document, **changes}


TABLE = r"""
| method | 98 % | 99.5 % | minutes per run |
| --- | --- | --- | --- |
| a\|b | 92.00 ± 2.00 (3) | **80.12** (1) | 3.0 |
| c | **93.00 ± 2.83** (2), 1 failed | **80.12** (1) | 1.0 |
| d | failed | – | – |
"""


def test_table():
    assert table(made_up(), "en") == TABLE.strip()
    chinese = table(made_up(), "cn")
    assert chinese == TABLE.strip().replace("method", "方法").replace("minutes per run", "每次运行分钟数").replace(
        "failed", "失败"
    )
    assert "**" not in table(made_up(runs=made_up()["runs"][:4]), "en"), "the best of one"


def test_ranks_are_shown_where_every_run_has_one():
    ranked = [run for run in made_up()["runs"] if run["label"] != "a|b"]
    assert "| method | 98 % | 99.5 % |\n| --- | --- | --- |\n| c | 60.00 ± 14.14 (2) | 50.00 (1) |\n\n" in section(
        made_up(runs=ranked)
    )
    assert "| method | 98 % |\n| --- | --- |\n| c | 60.00 ± 14.14 (2) |\n\n" in section(
        made_up(runs=ranked + [run for run in made_up()["runs"] if run["label"] == "a|b"][3:])
    )
    assert section(made_up()).count("method") == 1


def test_page_names_where_when_and_how():
    text = page(made_up())
    for word in ("Some CPU", "2 cores", "8 GB", "mindspore 2.7.0", "2024-02-29", "`rpg-ms compare --config x.yaml`"):
        assert word in text and word not in section(made_up())
    assert "test images" in section(made_up())
    assert "validation images" in section(made_up(evaluated_on="validation"))


def test_csv_of_means():
    lines = {
        (line["label"], line["target_density"]): line
        for line in csv.DictReader(csv_text(means(made_up())).splitlines())
    }
    assert len(lines) == 6
    three, two, none = lines["a|b", "0.02"], lines["c", "0.02"], lines["d", "0.005"]
    assert (three["seeds"], three["top1_mean"], three["top1_std"], three["seconds_mean"]) == ("3", "92.0", "2.0", "180")
    assert three["settings"] == "rank.lambda=0 a.b=[1, 2]"
    assert (two["seeds"], two["failed"], two["top1_mean"], two["top1_std"]) == ("2", "1", "93.0", "2.8284")
    assert (two["rank_mean"], two["rank_std"], three["rank_mean"], three["rank_std"]) == ("60", "14.1421", "", "")
    assert lines["c", "0.005"]["top1_std"] == lines["c", "0.005"]["rank_std"] == ""
    assert (none["seeds"], none["top1_mean"], none["seconds_mean"]) == ("0", "", "")


def test_csv_of_runs():
    lines = list(csv.DictReader(csv_text(made_up()["runs"], ("environment", "reason")).splitlines()))
    assert len(lines) == 10
    assert (lines[1]["top1"], lines[1]["settings"]) == ("92.0", "rank.lambda=0 a.b=[1, 2]")
    assert (lines[6]["status"], lines[6]["reason"], lines[6]["top1"]) == ("failed", "out of luck", "")

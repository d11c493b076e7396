"""What a comparison is asked for: its runs, and what is refused before the first of them."""

import pytest

from comparisons import CONFIG, compare_fakes, in_a_group_of_its_own, planned, run_fakes
from doors import command, door, refused
from rpg_ms.compare.grid import Entry, parse_entry
from rpg_ms.errors import UserError


@pytest.mark.parametrize(
    "text, entry",
    [
        ("rpg", Entry("rpg", "rpg")),
        ("plain=gmp", Entry("plain", "gmp")),
        (
            "RPG λ/2=rpg,rank.lambda=0.25,pruning.alpha=0.1",
            Entry("RPG λ/2", "rpg", ("rank.lambda=0.25", "pruning.alpha=0.1")),
        ),
        (
            "x=gmp,schedule.milestones=[0.5,0.75],pruning.exclude=[a, b]",
            Entry("x", "gmp", ("schedule.milestones=[0.5,0.75]", "pruning.exclude=[a, b]")),
        ),
    ],
)
def test_method_entries(text, entry):
    assert parse_entry(text) == entry


@pytest.mark.parametrize(
    "text, words",
    [
        ("rgp", ["'rgp' is not one of rpg, "]),
        ("a=", ["'' is not one of"]),
        ("=rpg", ["LABEL=METHOD"]),
        ("a\nb=rpg", ["LABEL=METHOD"]),
        ("rpg,rank.lambda=0", ["label", "LABEL=rpg,rank.lambda=0"]),
        ("a=rpg,rank.lambda", ["'rpg,rank.lambda' is not one of"]),
        ("a=rpg,seed=1", ["seed is given by --seeds"]),
        ("a=rpg,pruning={density: 0.1}", ["pruning.method is given by --methods"]),
        ("a=rpg,data.validation=0.5", ["data.validation", "--set, for all methods"]),
    ],
)
def test_method_entries_refused(text, words):
    with pytest.raises(UserError) as error:
        parse_entry(text)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--methods", "rpg", "rgp"], ["'rgp' is not one of rpg, "]),
        (["--methods", "rpg", "gmp", "rpg=gmp"], ["label: rpg is given twice"]),
        (["--methods", "a b=rpg", "a_b=gmp"], ["same folder", "a_b_d0.2_s0"]),
        (["--methods", "rpg", "--densities", "0.1", "1.5"], ["--densities: 1.5 is not in (0, 1]"]),
        (["--methods", "rpg", "--densities", "nan"], ["--densities: nan"]),
        (["--methods", "rpg", "--densities", "0.1", "0.10"], ["--densities: 0.1 is given twice"]),
        (["--methods", "rpg", "--seeds", "1", "1"], ["--seeds: 1 is given twice"]),
        (["--methods", "rpg", "--seeds", "-1"], ["seed", "-1"]),
        (["--methods", "rpg", "--set", "pruning . method=gmp"], ["--set", "method is given by --methods"]),
        (["--methods", "rpg", "--set", "output_dir=x"], ["output_dir is given by --output_dir"]),
        (["--methods", "rpg", "--set", "rank.lamda=1"], ["--set: rank.lamda", "lambda"]),
        (["--methods", "rpg", "x=gmp,pruning.alpha=0.3"], ["x: ", "pruning.alpha"]),
        (["--methods", "rpg", "--results", "a.yaml/x"], ["--results: a.yaml/x cannot be written"]),
        (["--methods", "rpg", "--output_dir", "a.yaml"], ["--output_dir: a.yaml cannot be written"]),
    ],
    ids=lambda value: " ".join(value[1:]) if value[0].startswith("--") else "",
)
def test_mistakes_are_found_before_the_first_run(project, arguments, words):
    result = door("compare", "--config", "a.yaml", "--densities", "0.2", *arguments, cwd=project)
    refused(result, *words)
    assert not result.stdout and not list(project.rglob("config.yaml"))


def test_cells(project):
    runs = planned("gmp", "λ .5/x=rpg,rank.lambda=0.5", "dense", seeds=(3, 4), settings=["rank.lambda=0.1"])
    found = [(run.folder.name, run.config.pruning.method, run.config.rank.lambda_) for run in runs[:3]]
    assert found == [("gmp_d0.2_s3", "gmp", 0.1), ("λ_.5_x_d0.2_s3", "rpg", 0.5), ("dense_d1_s3", "dense", 0.1)]
    assert [run.config.seed for run in runs] == [3, 3, 3, 4, 4, 4]
    assert [run.config.pruning.density for run in runs[:3]] == [0.2, 0.2, 1.0]


def test_a_method_keeps_its_own_values(project):
    """A file made for RPG does not turn the other methods into mixtures of theirs and RPG's values."""
    (project / "a.yaml").write_text(
        CONFIG.replace("pruning: {", "rank: {lambda: 3.0, delta: 0.4}\npruning: {schedule: exponential, alpha: 0.2, ")
    )

    def values(run):
        pruning, rank = run.config.pruning, run.config.rank
        return (
            pruning.schedule,
            pruning.alpha,
            rank.lambda_,
            rank.delta,
            pruning.update_every,
            pruning.prune_until,
            pruning.freeze_after,
        )

    assert [values(run) for run in planned("rpg", "gmp", "rigl", "st3", "both=rigl,rank.lambda=3.0")] == [
        ("exponential", 0.2, 3.0, 0.4, 3, 0.6, 0.7),
        ("cubic", 0.0, 0.0, 0.1, 3, 0.6, 0.7),
        ("constant", 0.3, 0.0, 0.1, 3, 0.75, 0.75),
        ("cubic", 0.0, 0.0, 0.1, 1, 0.5, 1.0),
        ("constant", 0.3, 3.0, 0.1, 3, 0.75, 0.75),
    ]
    assert values(planned("rigl", settings=["pruning.alpha=0.5"])[0])[1] == 0.5


def test_clipping_is_a_methods_own_only_where_it_comes_with_one(project):
    clips = lambda *methods: [run.config.train.clip_norm for run in planned(*methods)]
    assert clips("st3", "rpg", "gmp") == [3.0, None, None]
    (project / "a.yaml").write_text(CONFIG.replace("train: {", "train: {clip_norm: 100.0, "))
    assert clips("rpg", "gmp", "st3") == [100.0, 100.0, 3.0]
    (project / "a.yaml").write_text(
        CONFIG.replace("train: {", "train: {clip_norm: 3.0, ").replace(
            "pruning: {method: rpg", "pruning: {method: st3, alpha: 0"
        )
    )
    assert clips("st3", "rpg", "gmp") == [3.0, None, None]


def test_what_a_file_counts_in_its_own_updates_stays_with_it(project):
    (project / "a.yaml").write_text(CONFIG.replace("pruning: {", "pruning: {warmup_updates: 1, "))
    runs = planned("rpg", "gmp", "granet", "rigl", "set", "one_shot", "st3")
    assert [run.config.pruning.warmup_updates for run in runs] == [1, 1, 1, 0, 0, 0, 0]
    assert planned("granet", settings=["pruning.warmup_updates=2"])[0].config.pruning.warmup_updates == 2


def test_run_of_another_configuration(project):
    run_fakes(planned("gmp"))
    with pytest.raises(UserError, match=r"gmp_d0.2_s0/config.yaml: .* optimizer.lr \(was 0.1, now 0.2\)"):
        planned("gmp", settings=["optimizer.lr=0.2"])
    planned("gmp", settings=["data.workers=2"])  # does not change the result
    (project / "runs/gmp_d0.2_s0/config.yaml").unlink()
    with pytest.raises(UserError, match="without config.yaml"):
        planned("gmp")
    (project / "runs/gmp_d0.2_s0/summary.json").rename(project / "runs/gmp_d0.2_s0/last.ckpt")  # one cut off
    with pytest.raises(UserError, match="without config.yaml"):
        planned("gmp")
    (project / "runs/gmp_d0.2_s0/last.ckpt").rename(project / "runs/gmp_d0.2_s0/metrics.jsonl")  # killed as it began
    planned("gmp")


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("summary.json", "", "summary.json: not JSON"),
        ("summary.json", "{}", "summary.json: top1 is missing"),
        ("environment.json", "{", "environment.json: not JSON"),
        ("environment.json", "{}", "environment.json: machine is missing"),
    ],
)
def test_damaged_files_are_named(project, name, content, words):
    run_fakes(planned("gmp"))
    (project / "runs/gmp_d0.2_s0" / name).write_text(content)
    for arguments in [], ["--dry_run"]:
        refused(
            door(
                "compare",
                "--config",
                "a.yaml",
                "--methods",
                "gmp",
                "--densities",
                "0.2",
                "--output_dir",
                "runs",
                *arguments,
                cwd=project,
            ),
            f"runs/gmp_d0.2_s0/{words}",
        )


def test_names_that_no_file_can_have(project):
    for arguments, words in [
        (["--methods", f"{'x' * 300}=gmp"], "File name too long"),
        (["--methods", "gmp", "--output_dir", "x" * 300], "File name too long"),
        (["--methods", "gmp", "--results", b"r\xff"], "not UTF-8 text"),
    ]:
        line = [*command("compare", "--config", "a.yaml", "--densities", "0.2"), *arguments]
        refused(in_a_group_of_its_own(line, project, {}), words)


def test_a_terminal_that_lacks_a_letter(project):
    result = compare_fakes("λ=gmp", "--dry_run", PYTHONIOENCODING="latin-1")
    assert result.returncode == 0 and "\\u03bb at 80 % sparsity" in result.stdout, result.stderr

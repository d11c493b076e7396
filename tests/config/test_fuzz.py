"""Whatever the text, a configuration or one line."""

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rpg_ms.config import SCHEMAS, Config, dump_config, load_config, reference_table
from rpg_ms.errors import UserError

KEYS = [path for path, schema in SCHEMAS.items() if "properties" not in schema]
fuzz = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        [
            "1e-4",
            "0x1F",
            "-0",
            ".inf",
            "010",
            "1_000",
            "2020-99-99",
            "=",
            "<<",
            "~",
            "yes",
            "'",
            '"\\',
            "\t",
            "!!set",
            "&a",
            "*a",
            "%x",
            "@",
            "`",
            "? ",
            "- ",
            ": ",
            "|",
            ">",
            "\x85",
            "\u2028",
            "9" * 5000,
        ]
    ),
)
snippets = st.one_of(
    scalars.map(str),
    st.recursive(
        scalars,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(scalars, inner, max_size=3)),
        max_leaves=8,
    ).map(str),
)
groups = st.sampled_from([path[0] for path in SCHEMAS])
lines = st.one_of(
    st.tuples(groups, snippets).map(": ".join),
    st.builds(lambda key, value: f"{key[0]}: {{{key[-1]}: {value}}}", st.sampled_from(KEYS), snippets),
    st.builds(lambda top, key, text: f"{top}:\n  {key[-1]}: {text}", groups, st.sampled_from(KEYS), snippets),
    snippets,
)


def outcome(*arguments):
    """The configuration, or the single line of the error."""
    try:
        return load_config(*arguments)
    except UserError as error:
        line = str(error)
        assert len(line.splitlines()) == 1 and line.isprintable() and len(line) < 600
        return line


@fuzz
@given(text=st.lists(lines, min_size=1, max_size=3).map("\n".join))
@example(text="<<: {seed: 3}")
@example(text="<<: 3")
@example(text="seed: " + "{a: " * 40)
def test_any_text_gives_a_configuration_or_one_line_naming_the_file(write, text):
    result = outcome(write(text))
    assert isinstance(result, Config) or result.startswith("x.yaml: ")


@fuzz
@given(content=st.binary(max_size=200))
def test_any_bytes_give_a_configuration_or_one_line(write, content):
    result = outcome(write(content))
    assert isinstance(result, Config) or result.startswith("x.yaml: ")


@fuzz
@given(path=st.sampled_from(list(SCHEMAS)), value=snippets)
def test_any_value_of_a_key_gives_a_configuration_or_one_line_naming_the_key(write, path, value):
    result = outcome(write(""), [f"{'.'.join(path)}={value}"])
    assert isinstance(result, Config) or (result.startswith("--set: ") and ".".join(path) in result)


@fuzz
@given(override=st.text())
def test_any_override_gives_a_configuration_or_one_line(write, override):
    result = outcome(write(""), [override])
    assert isinstance(result, Config) or result.startswith("--set: ")


# the two ends of pruning are legal only together, which has a test of its own
@fuzz
@given(
    path=st.sampled_from([path for path in KEYS if path[-1] not in ("prune_until", "freeze_after")]),
    value=st.one_of(st.integers(), st.floats(), st.booleans(), st.none()),
)
def test_a_key_takes_exactly_what_its_row_of_the_reference_says(write, path, value):
    """The range is read from the rendered table, so the table, the check and the message cannot disagree."""
    row = next(line for line in reference_table().splitlines() if line.startswith(f"| `{'.'.join(path)}` |"))
    kind, _, legal = (cell.strip() for cell in row.split("|")[2:5])
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is None:
        expected = kind.endswith("or null")
    elif kind.startswith("integer"):
        expected = isinstance(value, int) and is_number and within(value, legal)
    elif kind.startswith("number"):
        expected = is_number and abs(value) < float("inf") and within(value, legal)
    else:
        expected = kind == "boolean" and isinstance(value, bool)
    text = repr(value).replace("inf", ".inf").replace("nan", ".nan").replace("None", "null")
    task = "detection" if path[0] == "detection" or path == ("model", "masks") else "classification"
    assert isinstance(outcome(write(f"task: {task}"), [f"{'.'.join(path)}={text}"]), Config) == expected


def within(value, legal) -> bool:
    if legal.startswith("in "):
        low, high = (eval(bound.replace("^", "**")) for bound in legal[4:-1].split(","))
        above = value >= low if legal[3] == "[" else value > low
        return above and (value <= high if legal[-1] == "]" else value < high)
    comparison, bound = legal.split()
    return value > float(bound) if comparison == ">" else value >= float(bound)


@fuzz
@given(
    name=st.text(min_size=1),
    exclude=st.lists(st.text(min_size=1), max_size=3),
    lr=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    weight=st.floats(0, 1e300),
    milestones=st.sets(st.floats(1e-9, 1 - 1e-9), max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
@example(name="yes", exclude=["1e-4", "null", "~", " a ", "a\nb", "#"], lr=1e-5, weight=1e16, milestones=set(), seed=0)
@example(name="\x85", exclude=[], lr=1.0, weight=0.0, milestones=set(), seed=0)
@example(
    name="\x85\u2028\ufeff\x00\x7f",
    exclude=["中文", "😀", "\t", "2020-01-01"],
    lr=1.0,
    weight=0.0,
    milestones=set(),
    seed=0,
)
def test_round_trip(write, name, exclude, lr, weight, milestones, seed):
    config = load_config(write(""))
    update = {
        "model": {"name": name},
        "optimizer": {"lr": lr},
        "rank": {"lambda": weight},
        "seed": seed,
        "schedule": {"milestones": sorted(milestones)},
        "pruning": {"exclude": exclude},
    }
    values = config.model_dump(by_alias=True)
    for key, value in update.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    config = Config.model_validate(values)
    assert load_config(write(dump_config(config))) == config

"""The two READMEs say the same and what they say is so."""
import json
import re
import runpy

import pytest

from conftest import PROJECT
from rpg_ms.compare.results import section, table
from rpg_ms.config import load_config, reference_table
from rpg_ms.errors import UserError

READMES = {name: (PROJECT / name).read_text(encoding="utf-8") for name in ("README.md", "README_CN.md")}
SCRIPT = runpy.run_path(str(PROJECT / "scripts/update_readme.py"))
updated = SCRIPT["updated"]


@pytest.mark.parametrize("name", READMES)
def test_key_table_is_current(name):
    assert reference_table().strip() in READMES[name], "run python scripts/update_readme.py"


@pytest.mark.parametrize("name", READMES)
def test_generated_parts_agree_with_the_data(name):
    assert updated(READMES[name], SCRIPT["READMES"][name], PROJECT / "results") == READMES[name], \
        "run python scripts/update_readme.py"


def test_results_are_written_between_their_marks(tmp_path):
    run = {"label": "rpg", "method": "rpg", "settings": [], "target_density": 0.02, "seed": 0,
           "status": "finished", "top1": 88.154, "seconds": 90.0}
    document = {"command": "python compare.py", "config": "x.yaml", "settings": [], "evaluated_on": "test",
                "date": "2024-02-29", "environments": [], "runs": [run]}
    (tmp_path / "small").mkdir()
    (tmp_path / "small/results.json").write_text(json.dumps(document))
    empty = "before\n<!-- results small -->\n<!-- /results small -->\nafter\n"
    for language in ("en", "cn"):
        text = updated(empty, language, tmp_path)
        assert section(document, language) in text and "| rpg | 88.15 (1) | 1.5 |" in text
        assert text.startswith("before\n<!-- results small -->\n| ") and text.endswith("-->\nafter\n")
        assert updated(text, language, tmp_path) == text
        assert updated(text.replace("88.15", "88.16"), language, tmp_path) == text, "what disagrees is found"
    assert re.findall(r"\d[\d.]*", table(document, "en")) == re.findall(r"\d[\d.]*", table(document, "cn"))
    with pytest.raises(UserError, match="large.* no data"):
        updated(empty + "<!-- results large -->\n<!-- /results large -->\n", "en", tmp_path)
    with pytest.raises(UserError, match="not closed"):
        updated("<!-- results small -->\n", "en", tmp_path)


def test_both_have_the_same_commands_numbers_and_sections():
    english, chinese = READMES.values()
    commands = [[line.split("#")[0].strip() for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
                 for line in block.splitlines()] for text in (english, chinese)]
    assert commands[0] == commands[1]
    results = [re.split("\n## (?:Performance|性能)", text.partition(heading)[2])[0]
               for text, heading in ((english, "\n## Results\n"), (chinese, "\n## 结果\n"))]
    numbers = [sorted(re.findall(r"\d[\d.,]*\d|\d", text)) for text in results]
    assert len(numbers[0]) > 20 and numbers[0] == numbers[1]
    marks = [re.findall(r"<!-- results ([\w.-]+) -->", text) for text in (english, chinese)]
    assert marks[0] == marks[1]
    assert english.count("\n## ") == chinese.count("\n## ")


def test_no_line_of_the_chinese_one_breaks_within_a_sentence():
    """Markdown makes a blank of a line break, which Chinese does not have between its characters."""
    chinese = r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]"
    prose = re.sub(r"```.*?```|^[|#>-].*?$", "\n", READMES["README_CN.md"], flags=re.DOTALL | re.MULTILINE)
    assert re.findall(rf".*{chinese}\n{chinese}.*", prose) == []


@pytest.mark.parametrize("name", READMES)
def test_named_files_exist(name):
    named = set(re.findall(r"(?:scripts|config|rpg_ms|tests)/[\w/]+\.(?:py|sh|yaml)", READMES[name]))
    assert named and all((PROJECT / file).is_file() for file in named), named


@pytest.mark.parametrize("file", sorted((PROJECT / "config").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_configuration_loads(file):
    load_config(file)

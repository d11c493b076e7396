"""The two READMEs say the same and what they say is so."""
import re

import pytest

from conftest import PROJECT
from rpg_ms.config import load_config, reference_table

READMES = {name: (PROJECT / name).read_text(encoding="utf-8") for name in ("README.md", "README_CN.md")}


@pytest.mark.parametrize("name", READMES)
def test_key_table_is_current(name):
    assert reference_table().strip() in READMES[name], "run python scripts/update_readme.py"


def test_both_have_the_same_commands_numbers_and_sections():
    english, chinese = READMES.values()
    commands = [[line.split("#")[0].strip() for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
                 for line in block.splitlines()] for text in (english, chinese)]
    assert commands[0] == commands[1]
    tables = [re.search(r"<!-- results -->\n(.*?)<!-- /results -->", text, re.DOTALL)[1] for text in (english, chinese)]
    numbers = [sorted(re.findall(r"\d[\d.,]*\d|\d", table)) for table in tables]
    assert numbers[0] == numbers[1]
    assert english.count("\n## ") == chinese.count("\n## ")


@pytest.mark.parametrize("name", READMES)
def test_named_files_exist(name):
    named = set(re.findall(r"(?:scripts|config|rpg_ms|tests)/[\w/]+\.(?:py|sh|yaml)", READMES[name]))
    assert named and all((PROJECT / file).is_file() for file in named), named


@pytest.mark.parametrize("file", sorted((PROJECT / "config").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_configuration_loads(file):
    load_config(file)

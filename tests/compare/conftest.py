import pytest

from comparisons import CONFIG, FAKE
from conftest import PROJECT


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a configuration, where `python -m rpg_ms` is the package's but for a `train` that only pretends."""
    (tmp_path / "a.yaml").write_text(CONFIG)
    (tmp_path / "rpg_ms").mkdir()
    (tmp_path / "rpg_ms/__init__.py").write_text(
        f"{(PROJECT / 'rpg_ms/__init__.py').read_text()}\n__path__.append({str(PROJECT / 'rpg_ms')!r})\n"
    )
    (tmp_path / "rpg_ms/__main__.py").write_text(
        f"import sys\nif sys.argv[1] == 'train':\n    exec({FAKE!r})\nelse:\n"
        "    from rpg_ms.commands import main\n    main()\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path

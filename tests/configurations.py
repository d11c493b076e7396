"""What is wrong with a configuration, for the tests of tests/config."""

import pytest

from rpg_ms.config import load_config
from rpg_ms.errors import UserError


def complaint(*arguments, **flags) -> str:
    """The line that a configuration is refused with; arguments as of `load_config`."""
    with pytest.raises(UserError) as caught:
        load_config(*arguments, **flags)
    line = str(caught.value)
    assert len(line.splitlines()) == 1 and line.isprintable()
    return line

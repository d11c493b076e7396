"""`python -m rpg_ms COMMAND ...`, the same as `rpg-ms COMMAND ...`."""

from __future__ import annotations

from rpg_ms.commands import main

if __name__ == "__main__":
    main()

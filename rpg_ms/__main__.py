"""`python -m rpg_ms COMMAND ...`, the same as `rpg-ms COMMAND ...`."""
from rpg_ms.commands import main

if __name__ == "__main__":
    main()

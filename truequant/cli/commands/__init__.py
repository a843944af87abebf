"""One file a command. A command is a function with typer's annotations; its name and docstring are what `--help` shows."""

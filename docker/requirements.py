"""Prints the requirements of parts of the project, so that an image installs only what it runs.

`python requirements.py service` → the `service` extra; `engine` names the project's own dependencies.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, parts: list[str]) -> list[str]:
    """Requirement lines of `parts`, without references to other extras of this project."""
    project = tomllib.loads(pyproject.read_text())["project"]
    groups = {"engine": project["dependencies"], **project["optional-dependencies"]}
    lines = [line for part in parts for line in groups[part]]
    return [line for line in lines if not line.startswith(f"{project['name']}[")]


if __name__ == "__main__":
    sys.stdout.write("\n".join(requirements(Path("pyproject.toml"), sys.argv[1:])) + "\n")

"""What each part imports is what its extra installs, and the engine imports nothing but its libraries."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
_LIBRARIES = "torch diffusers transformers tokenizers einops safetensors numpy scipy PIL rich"
ENGINE_LIBRARIES = set(_LIBRARIES.split())
PROVIDERS = packages_distributions()


@cache
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("service", "worker", include_external_packages=True)


def imported(package: str, *, without: tuple[str, ...] = ()) -> set[str]:
    """Top-level names outside this project and the standard library that modules of `package` import."""
    modules = {package, *graph().find_descendants(package)}
    kept = {
        module for module in modules if not any(module == w or module.startswith(f"{w}.") for w in without)
    }
    found = {name for module in kept for name in graph().find_modules_directly_imported_by(module)}
    tops = {name.partition(".")[0] for name in found}
    return {top for top in tops if top in PROVIDERS} - {"service", "worker", "migrations"}


def distributions(*parts: str) -> set[str]:
    """Normalised names of the distributions that these parts of pyproject.toml ask for."""
    groups = {"engine": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    return {normalised(re.split(r"[\[<>=~;! ]", line)[0]) for part in parts for line in groups[part]}


def normalised(name: str) -> str:
    """A distribution's name as packaging compares it: underscores are hyphens."""
    return name.lower().replace("_", "-")


def undeclared(names: set[str], *parts: str) -> set[str]:
    """Imported names that none of the declared distributions provides."""
    declared = distributions(*parts)
    provided = {name for name, dists in PROVIDERS.items() if {normalised(d) for d in dists} & declared}
    return names - provided


def test_the_engine_imports_its_libraries_only() -> None:
    assert imported("worker.engine") <= ENGINE_LIBRARIES


def test_the_service_installs_what_it_imports() -> None:
    assert (
        undeclared(imported("service", without=("service.embedded", "service.supervisor")), "service")
        == set()
    )


def test_the_worker_installs_what_it_imports() -> None:
    assert undeclared(imported("worker"), "engine", "service", "worker") == set()


@pytest.mark.parametrize(
    "name", sorted(distributions("engine", "service", "worker", "embedded") - {"sauscan"})
)
def test_every_dependency_is_pinned(name: str) -> None:
    pins = {line.partition("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").open()}
    assert name.replace("_", "-") in pins

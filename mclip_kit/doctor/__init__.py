"""`mclip-kit doctor`: whether this machine, the installed packages and a recipe can start a run.

findings.py      a line of the report; checks that raise become lines too
environment.py   packages, imports, devices, memory and disk
recipe.py        prepared data, and the first step of a run
weights.py       where the weights of a recipe are

Nothing heavy is imported before it is checked, so a broken package is a line of the report.
"""

from collections.abc import Iterator, Sequence

from mclip_kit.doctor.environment import IMPORTS, check_devices, check_import, check_packages, check_room
from mclip_kit.doctor.findings import PROBLEM, Finding, guarded
from mclip_kit.doctor.recipe import check_recipe


def diagnose(recipe: str | None = None, overrides: Sequence[str] = ()) -> Iterator[Finding]:
    """Run all checks and yield each finding at once; nothing is raised.

    Args:
        recipe: a file or the name of a shipped recipe. None: only the machine and the packages are checked.
        overrides: keys of the recipe, as KEY.PATH=VALUE.
    """
    yield from guarded("packages", check_packages)
    for package, module in IMPORTS.items():
        yield from guarded(f"import {package}", check_import, package, module)
    yield from guarded("devices", check_devices)
    found = guarded("recipe", check_recipe, recipe, overrides) if recipe else []
    yield from found
    size, download = sum(finding.size for finding in found), sum(finding.download for finding in found)
    yield from guarded("room", check_room, size, download)


def conclusion(recipe: str | None, findings: Sequence[Finding]) -> str:
    """The last line of the report."""
    count = sum(finding.status == PROBLEM for finding in findings)
    what, good, bad = (
        (recipe, "can start", "cannot start") if recipe else ("this environment", "is sound", "is not sound")
    )
    return f"{what} {bad}: {count} problem{'s' * (count > 1)}" if count else f"{what} {good}"

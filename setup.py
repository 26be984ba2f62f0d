"""What a wheel holds beside the packages; all else is in pyproject.toml.

    actrep_ray/recipes/              the recipes of the checkout's top level
    actrep_ray_torchvision.pth       see actrep_ray/torchvision_hook.py

An editable installation takes neither: its recipes lie in the checkout, and `launch.sh setup`
writes the .pth file.
"""

import ast
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithRecipes(build_py):
    """Adds the recipes and the .pth file to what was built."""

    def run(self) -> None:
        """Build, then add."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib)
        recipes = target / "actrep_ray" / "recipes"
        shutil.rmtree(recipes, ignore_errors=True)
        shutil.copytree(ROOT / "recipes", recipes)
        hook = constants(ROOT / "actrep_ray" / "torchvision_hook.py")
        (target / hook["PTH_NAME"]).write_text(hook["PTH_LINE"], encoding="utf-8")


def constants(path: Path) -> dict[str, str]:
    """Texts that a module assigns at its top level; it is not imported."""
    return {
        node.targets[0].id: node.value.value
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }


setup(cmdclass={"build_py": BuildWithRecipes})

"""Beside pyproject.toml, for one thing: the wheel carries the plugin's sources, which lie outside the package."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PLUGINS = Path("plugins")
PARTS = ("CMakeLists.txt", "msconv/kernels", "msconv/tensorrt")
SUFFIXES = {".cpp", ".cu", ".h", ".map", ".txt"}  # those that msconv_deploy.plugin.build reads: not an editor's backups
PACKAGE_FOLDER = Path("msconv_deploy/plugin/sources")


class BuildWithPluginSources(build_py):
    """Copies them to ``msconv_deploy/plugin/sources``, where `msconv plugin build` looks outside a checkout."""

    def _sources(self) -> dict[str, str]:
        """File in the build folder -> file of the checkout."""
        found = sorted(
            path
            for part in PARTS
            for path in (PLUGINS / part, *(PLUGINS / part).glob("*"))
            if path.is_file() and path.suffix in SUFFIXES
        )
        return {str(Path(self.build_lib) / PACKAGE_FOLDER / path.relative_to(PLUGINS)): str(path) for path in found}

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for target, source in self._sources().items():
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        own = [] if self.editable_mode else list(self._sources())
        return [*super().get_outputs(include_bytecode), *own]

    def get_source_files(self) -> list[str]:
        """For the sdist, from which the wheel can be built again."""
        return [*super().get_source_files(), *self._sources().values()]


setup(cmdclass={"build_py": BuildWithPluginSources})

"""What is shipped: the wheel's and the sdist's contents, and that a wheel from the sdist is the same."""

import ast
import importlib.metadata
import os
import re
import sys
import zipfile
from pathlib import Path

import pytest

import msconv_deploy
from msconv_deploy import __version__
from msconv_deploy.plugin.build import sources_sha256
from tests.packaging.distributions import (
    ROOT,
    SOURCES,
    build,
    expected_in_package,
    metadata,
    names_in,
    problems,
    tracked_copy,
    unpacked,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OLDEST_SETUPTOOLS = 77
LEFT_BY_EDITORS = ["kernels/msconv2d.h~", "kernels/.msconv2d.cu.swp", "tensorrt/creator.cpp.orig"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheel and sdist of the checkout."""
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    if int(version.split(".")[0]) < OLDEST_SETUPTOOLS:
        pytest.skip(f"needs setuptools {OLDEST_SETUPTOOLS} or later to build without a download; here is {version}")
    folder = tmp_path_factory.mktemp("built")
    source = tracked_copy(folder / "source")
    for left in LEFT_BY_EDITORS:
        (source / "plugins" / "msconv" / left).write_text("")
    return build("wheel", source, folder / "dist"), build("sdist", source, folder / "dist")


def test_the_wheel_holds_the_package_and_nothing_else(built):
    assert problems(built[0]) == []
    assert not [name for name in names_in(built[0]) if name.startswith(("tests", "models", "benchmarks", "export"))]


def test_what_an_editor_leaves_is_not_shipped(built):
    assert not [name for name in names_in(built[0]) + names_in(built[1]) if name.endswith(tuple(LEFT_BY_EDITORS))]


def test_the_suffixes_are_those_that_the_build_reads():
    """setup.py cannot import the package."""
    from msconv_deploy.plugin.build import _SOURCE_SUFFIXES

    (line,) = re.findall(r"^SUFFIXES = (\{.*\})", (ROOT / "setup.py").read_text(), re.MULTILINE)
    assert ast.literal_eval(line) == _SOURCE_SUFFIXES


def test_the_tests_bring_what_builds_a_distribution():
    """Else they are skipped here."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert f"setuptools>={OLDEST_SETUPTOOLS}" in extras["test"]


def test_what_is_expected_is_not_empty():
    """The comparison above cannot pass because both sides are empty."""
    expected = expected_in_package()
    assert {"msconv_deploy/py.typed", "msconv_deploy/reporting/html/templates/optimize.html.jinja"} <= expected
    assert {f"{SOURCES}CMakeLists.txt", f"{SOURCES}msconv/kernels/msconv2d.h"} <= expected
    assert f"{SOURCES}msconv/tensorrt/exports.map" in expected


def test_a_wheel_from_the_sdist_is_the_same(built, tmp_path):
    wheel, sdist = built
    again = build("wheel", unpacked(sdist, tmp_path / "unpacked"), tmp_path / "dist")
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())
        assert all(first.read(n) == second.read(n) for n in first.namelist() if not n.endswith("/RECORD"))


def test_the_sdist_holds_no_tests_and_no_models(built):
    names = names_in(built[1])
    assert {"LICENSE", "README.md", "SECURITY.md", "CHANGELOG.md", "pyproject.toml", "setup.py"} <= set(names)
    assert not [n for n in names if n.startswith(("tests/", "models/", "benchmarks/", "build/", "shared/"))]


def test_the_plugins_sources_in_the_wheel_are_those_of_the_checkout(built, tmp_path):
    with zipfile.ZipFile(built[0]) as archive:
        archive.extractall(tmp_path)
    assert sources_sha256(tmp_path / SOURCES) == sources_sha256(ROOT / "plugins")


def test_the_metadata_are_complete(built):
    fields = metadata(built[0])
    assert fields["Name"] == ["msconv-deploy"]
    assert fields["Version"] == [__version__]
    assert fields["License-Expression"] == ["Apache-2.0"]
    assert fields["Requires-Python"] == [">=3.10"]
    assert {"gpu", "plugin", "serve", "torch"} <= set(fields["Provides-Extra"])
    unconditional = [r for r in fields["Requires-Dist"] if "extra ==" not in r]
    assert unconditional
    assert not [r for r in unconditional if r.startswith(("torch", "tensorrt"))]


@pytest.mark.skipif("MSCONV_INSTALLED" not in os.environ, reason="only tests/torch_free.py installs a wheel")
def test_the_tests_run_on_the_installed_package():
    assert Path(msconv_deploy.__file__).is_relative_to(os.environ["MSCONV_INSTALLED"])

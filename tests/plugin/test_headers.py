"""TensorRT's headers: which are taken, and fetching them."""

import io
import tarfile
import urllib.error
import urllib.request

import pytest

from msconv_deploy.errors import BadInputError, NotAvailableError
from msconv_deploy.plugin.headers import Headers, available, fetch_headers, find_headers
from tests.plugin.conftest import write_headers


def test_the_newest_fetched_ones_are_the_default(bare):
    for version in ("8.6.0", "10.6.0", "10.16.0", "11.1.0"):
        write_headers(bare / "cache" / "tensorrt-headers" / version / "include", version)
    assert [h.version for h in available()] == ["11.1.0", "10.16.0", "10.6.0", "8.6.0"]
    assert find_headers().version == "11.1.0"
    assert find_headers("10").version == "10.16.0"
    assert find_headers("10.6").version == "10.6.0"
    assert find_headers("8.6.0").major == 8
    with pytest.raises(NotAvailableError, match="10.1 "):
        find_headers("10.1")  # 10.16 is no 10.1


def test_those_that_are_named_come_first(bare, monkeypatch):
    write_headers(bare / "cache" / "tensorrt-headers" / "11.1.0" / "include", "11.1.0")
    write_headers(bare / "TensorRT-10.3" / "include", "10.3.0")
    monkeypatch.setenv("TENSORRT_ROOT", str(bare / "TensorRT-10.3"))
    assert find_headers() == Headers(bare / "TensorRT-10.3" / "include", "10.3.0")
    assert find_headers("11").version == "11.1.0"


def archive(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content.encode()))
    return path.as_uri()


VERSION_H = "#define NV_TENSORRT_MAJOR 10\n#define NV_TENSORRT_MINOR 9\n#define NV_TENSORRT_PATCH 0\n"


def test_they_are_fetched_into_the_cache(bare):
    url = archive(
        bare / "archive.tar.gz",
        {
            "TensorRT-10.9.0/include/NvInferRuntime.h": "// here",
            "TensorRT-10.9.0/include/NvInferVersion.h": VERSION_H,
            "TensorRT-10.9.0/include/impl/NvInferPythonPlugin.h": "// deeper",
            "TensorRT-10.9.0/plugin/other.h": "// not wanted",
            "TensorRT-10.9.0/include/../../../evil.h": "// outside",
        },
    )
    fetched = fetch_headers("10.9.0", url)
    assert fetched.version == "10.9.0"
    assert fetched.folder == bare / "cache" / "tensorrt-headers" / "10.9.0" / "include"
    files = {p.relative_to(fetched.folder).as_posix() for p in fetched.folder.rglob("*") if p.is_file()}
    assert files == {"NvInferRuntime.h", "NvInferVersion.h", "impl/NvInferPythonPlugin.h"}
    assert not list(bare.rglob("evil.h"))
    assert find_headers("10.9") == fetched


@pytest.mark.parametrize("content", [b"<html>not here</html>", b""])
def test_what_is_no_archive_leaves_nothing(bare, content):
    (bare / "archive.tar.gz").write_bytes(content)
    with pytest.raises(BadInputError, match="is no archive"):
        fetch_headers("10.9.0", (bare / "archive.tar.gz").as_uri())
    assert available() == []
    assert list((bare / "cache" / "tensorrt-headers" / "10.9.0").iterdir()) == []


def test_an_archive_without_headers(bare):
    url = archive(bare / "archive.tar.gz", {"TensorRT-10.9.0/README.md": "nothing"})
    with pytest.raises(BadInputError, match="no include/NvInferRuntime.h"):
        fetch_headers("10.9.0", url)
    assert available() == []


BAD_VERSION_H = "#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE\n"


def release(path, version_h):
    """Address of an archive like a release's, with this NvInferVersion.h."""
    top = "TensorRT-10.9.0/include"
    return archive(path, {f"{top}/NvInferRuntime.h": "// here", f"{top}/NvInferVersion.h": version_h})


def test_headers_without_a_version_do_not_stay(bare):
    """What was bad once is no obstacle to the right archive."""
    url = release(bare / "archive.tar.gz", BAD_VERSION_H)
    for _ in range(2):
        with pytest.raises(BadInputError, match="archive.tar.gz: its NvInferVersion.h names no version"):
            fetch_headers("10.9.0", url)
    assert available() == []
    assert fetch_headers("10.9.0", release(bare / "archive.tar.gz", VERSION_H)).version == "10.9.0"


def test_headers_that_another_process_has_put_there_are_used(bare):
    url = release(bare / "archive.tar.gz", VERSION_H)
    first = fetch_headers("10.9.0", url)
    (first.folder / "mark").write_text("")
    assert fetch_headers("10.9.0", url) == first
    assert (first.folder / "mark").exists()


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_lies_in_their_place_is_said(bare, kind):
    place = bare / "cache" / "tensorrt-headers" / "10.9.0" / "include"
    left = place / "NvInferRuntime.h" if kind == "folder" else place
    left.parent.mkdir(parents=True)
    left.write_text("")
    with pytest.raises(BadInputError, match="include: is not TensorRT's headers: remove it"):
        fetch_headers("10.9.0", release(bare / "archive.tar.gz", VERSION_H))


def test_offline(bare, monkeypatch):
    def refuse(address, timeout):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(NotAvailableError, match="cannot be reached from here.*TENSORRT_INCLUDE_DIR") as caught:
        find_headers("10.9", download=True)
    assert "tags/v10.9.tar.gz" in str(caught.value)


def test_no_such_tag(bare, monkeypatch):
    def missing(address, timeout):
        raise urllib.error.HTTPError(address, 404, "Not Found", None, None)

    monkeypatch.setattr(urllib.request, "urlopen", missing)
    with pytest.raises(NotAvailableError, match="404 Not Found; is 10.99 a tag"):
        find_headers("10.99", download=True)


def test_nothing_is_fetched_unasked(bare, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *a, **k: pytest.fail("the network was used"))
    with pytest.raises(NotAvailableError):
        find_headers("10.9")
    with pytest.raises(BadInputError, match="--download needs the version"):
        find_headers(download=True)

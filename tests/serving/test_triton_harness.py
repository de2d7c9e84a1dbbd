"""What runs the tests against Triton says when it cannot, and does not pass for having passed."""

import pytest

from tests.serving import real_triton


def test_without_the_shared_library_nothing_passes(monkeypatch, capsys):
    monkeypatch.setattr(real_triton, "PYTHON", (3, 99))
    assert real_triton.main([]) == 3
    assert "not tested against Triton: libpython3.99.so.1.0 is not there" in capsys.readouterr().err


def test_without_the_wheel_nothing_passes(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(real_triton, "find_libpython", lambda: None)
    monkeypatch.setattr(real_triton, "PYTHON", real_triton.sys.version_info[:2])
    monkeypatch.setattr(real_triton, "VENV", tmp_path / "venv")
    monkeypatch.setattr(real_triton, "REQUIREMENTS", (str(tmp_path / "no.whl"),))
    assert real_triton.main([]) == 3
    assert "no.whl cannot be installed" in capsys.readouterr().err
    assert not real_triton.installed()


def test_the_tests_of_repositories_run_where_the_server_was_had(monkeypatch):
    """After the suite, and with nothing skipped: exit code 3 is for a server that cannot be had."""
    runs = []
    monkeypatch.setattr(real_triton, "install", lambda: None)
    monkeypatch.setattr(real_triton, "run_suite", lambda folder, arguments: runs.append(arguments) or 0)
    monkeypatch.setattr(
        real_triton, "_pytest", lambda file, arguments, env: runs.append((file, env["MSCONV_TRITON"])) or 1
    )
    assert real_triton.main(["-x"]) == 1
    assert runs == [["-x"], ("test_triton_real.py", "1")]


def test_a_server_that_ends_is_told_with_its_log(monkeypatch, tmp_path):
    venv = tmp_path / "venv"
    server = venv / "lib" / "python3.11" / "site-packages" / "pytriton" / "tritonserver"
    (server / "bin").mkdir(parents=True)
    (server / "backends" / "python").mkdir(parents=True)
    stubs = server / "python_backend_stubs" / "3.11"
    stubs.mkdir(parents=True)
    (stubs / "triton_python_backend_stub").write_text("")
    program = server / "bin" / "tritonserver"
    program.write_text("#!/bin/sh\necho no such model >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(real_triton, "VENV", venv)
    monkeypatch.setattr(real_triton, "installed", lambda: True)
    monkeypatch.setattr(real_triton, "find_libpython", lambda: None)
    with (
        pytest.raises(real_triton.NoTritonError, match="(?s)ended with 1.*no such model"),
        real_triton.serving(tmp_path, tmp_path),
    ):
        raise AssertionError("it never becomes ready")

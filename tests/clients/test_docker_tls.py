"""The Docker Engine API over TCP with TLS, asked by the docker command."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.docker_engine import take_away

from longshore.engine.dockerapi import hosts
from longshore.machinery import pki

ADDRESS = "tcp://127.0.0.1:2376"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if os.geteuid() != 0 or shutil.which("docker") is None:
        pytest.skip("needs root and the docker command")
    base = tmp_path_factory.mktemp("tls")
    authority, other = pki.make_ca("ours"), pki.make_ca("another")
    authority.write(base / "ca.pem", base / "ca-key.pem")
    pki.issue(authority, "engine", names=["127.0.0.1"], server=True).write(base / "server.pem", base / "server-key.pem")
    for name, signer in (("good", authority), ("bad", other)):
        (base / name).mkdir()
        pki.issue(signer, "client", client=True).write(base / name / "cert.pem", base / name / "key.pem")
        shutil.copy(base / "ca.pem", base / name / "ca.pem")
    command = [
        sys.executable, "-m", "longshore", "engine", "--data-dir", str(base / "data"), "--run-dir", str(base / "run"),
        "--registry-port", "0", "--docker-host", ADDRESS, "--tlsverify", "--tlscacert", str(base / "ca.pem"),
        "--tlscert", str(base / "server.pem"), "--tlskey", str(base / "server-key.pem"), "--group", "12345",
    ]  # fmt: skip
    with open(base / "log", "w") as log:
        engine = subprocess.Popen(command, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while "engine is ready" not in (base / "log").read_text():
            assert engine.poll() is None and time.monotonic() < deadline, (base / "log").read_text()
            time.sleep(0.05)
        yield base
    finally:
        engine.send_signal(signal.SIGTERM)
        engine.wait(10)
        take_away(base, "docker", "docker")


def ask(certificates: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["docker", "-H", ADDRESS, *flags, "version", "-f", "{{.Server.Os}}"],
        capture_output=True,
        text=True,
        timeout=30,
        env={"PATH": os.environ["PATH"], "HOME": str(certificates), "DOCKER_CERT_PATH": str(certificates)},
    )


@pytest.mark.root
def test_only_clients_of_our_authority_are_let_in(folder: Path) -> None:
    assert ask(folder / "good", "--tlsverify").stdout == "linux\n"
    refused = ask(folder / "bad", "--tlsverify")
    assert refused.returncode != 0 and "error during connect" in refused.stderr
    plain = ask(folder)
    assert plain.returncode != 0


@pytest.mark.root
def test_the_socket_belongs_to_the_group(folder: Path) -> None:
    info = (folder / "run" / "docker.sock").stat()
    assert (info.st_gid, info.st_mode & 0o777) == (12345, 0o660)


@pytest.mark.parametrize(
    "text, tls, host",
    [
        ("tcp://127.0.0.1:1", False, hosts.Host(host="127.0.0.1", port=1)),
        ("tcp://[::1]", True, hosts.Host(host="::1", port=2376)),
        ("tcp://", False, hosts.Host(host="127.0.0.1", port=2375)),
        ("localhost:5", True, hosts.Host(host="localhost", port=5)),
        ("unix:///x/y", True, hosts.Host(path=Path("/x/y"))),
    ],
)
def test_addresses(text: str, tls: bool, host: hosts.Host) -> None:
    assert hosts.parse(text, tls=tls) == host


@pytest.mark.parametrize("text", ["ssh://x", "tcp://x:y", "tcp://x:1/path", "tcp://u@x:1"])
def test_wrong_addresses(text: str) -> None:
    with pytest.raises(ValueError, match="invalid bind address"):
        hosts.parse(text, tls=False)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="could not load X509 key pair"):
        hosts.TLSFiles(tmp_path / "cert.pem", tmp_path / "key.pem").context()

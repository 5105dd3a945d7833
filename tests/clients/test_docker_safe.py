"""What an image or a container may try against the host: each of these fails on an engine that has the named weakness."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import threading
import time
from pathlib import Path

import pytest
from tests.support.docker_engine import DockerEngine, base_image_tar

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("clean")]


def image_with(engine: DockerEngine, links: dict[str, str], *changes: str) -> str:
    """An image like busybox in which some paths are symbolic links."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(base_image_tar())) as base, tarfile.open(fileobj=out, mode="w") as made:
        for member in base:
            if member.name not in links:
                made.addfile(member, base.extractfile(member) if member.isreg() else None)
        for name, target in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            made.addfile(info)
    words = [word for change in ('CMD ["sh"]', *changes) for word in ("-c", change)]
    engine.docker("import", *words, "-", "linked:latest", input=out.getvalue())
    return "linked:latest"


def mounts() -> set[str]:
    return {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}


@pytest.mark.parametrize("up", ["", "/../../../../../../../.."])
@pytest.mark.parametrize(
    "paths", [("dev",), ("proc",), ("sys",), ("dev/pts/0", "dev/pts/1", "dev/tty", "dev/fd", "dev/stdout"), ("dev/null", "dev/console", "dev/pts", "dev/ptmx", "dev/shm", "etc/hosts",
              "etc/resolv.conf", "etc/hostname", ".dockerenv", "etc/mtab")], ids=["dev", "proc", "sys", "pts", "files"],
)  # fmt: skip
def test_links_in_the_image_where_the_engine_mounts(
    engine: DockerEngine, tmp_path: Path, paths: tuple[str, ...], up: str
) -> None:
    """CVE-2019-19921, CVE-2023-27561, CVE-2025-31133, CVE-2025-52565: nothing of the host is written, shown or mounted over."""
    canary = tmp_path / "host"
    canary.mkdir()
    (canary / "secret").write_text("of the host")
    folders = ("dev", "proc", "sys", "dev/pts", "dev/shm")
    image = image_with(engine, {p: up + str(canary if p in folders else canary / "secret") for p in paths})
    before = mounts()
    script = "; ".join(f"timeout 1 cat /{p}/secret /{p} 2>/dev/null; echo x > /{p}/new; echo x > /{p}" for p in paths)
    done = engine.docker("run", "--rm", "--network", "none", image, "sh", "-c", script, check=False)
    assert "of the host" not in done.stdout
    terminal = f"docker -H unix://{engine.socket} run --rm --network none -t {image} true"
    tty = subprocess.run(["script", "-qec", terminal, "/dev/null"], stdin=subprocess.DEVNULL, capture_output=True, timeout=60)  # fmt: skip
    assert b"of the host" not in tty.stdout
    assert (canary / "secret").read_text() == "of the host"
    assert os.listdir(canary) == ["secret"]
    assert not {m for m in mounts() - before if m.startswith(str(canary))}


@pytest.mark.parametrize("name", ["null", "console", "pts"])
def test_links_in_a_folder_over_dev(engine: DockerEngine, tmp_path: Path, name: str) -> None:
    """CVE-2025-31133, CVE-2025-52565: masks and terminals go by what lies in /dev."""
    folder = tmp_path / "dev"
    folder.mkdir()
    (folder / name).symlink_to("/proc/sys/kernel/core_pattern" if name != "pts" else "/proc/sys/kernel")
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    done = engine.docker("run", "--rm", "-v", f"{folder}:/dev", "busybox", "cat", "/proc/timer_list", check=False)
    assert done.returncode != 0 and f"/dev/{name} is a symbolic link" in done.stderr
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before


def test_an_empty_folder_over_dev_unmasks_nothing(engine: DockerEngine, tmp_path: Path) -> None:
    """CVE-2025-31133: without a /dev/null the runtime would leave what is masked readable."""
    (tmp_path / "dev").mkdir()
    script = "cat /proc/keys /proc/timer_list 2>/dev/null | wc -c"
    done = engine.docker("run", "--rm", "-v", f"{tmp_path / 'dev'}:/dev", "busybox", "sh", "-c", script)
    assert done.stdout == "0\n"


def test_an_image_whose_volume_is_dev(engine: DockerEngine) -> None:
    """The same, brought by the image alone."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(base_image_tar())) as base, tarfile.open(fileobj=out, mode="w") as made:
        for member in base:
            made.addfile(member, base.extractfile(member) if member.isreg() else None)
        info = tarfile.TarInfo("dev/null")
        info.type, info.linkname = tarfile.SYMTYPE, "/proc/sys/kernel/core_pattern"
        made.addfile(info)
    engine.docker("import", "-c", "VOLUME /dev", "-", "voldev:latest", input=out.getvalue())
    done = engine.docker("run", "--rm", "voldev", "cat", "/proc/timer_list", check=False)
    assert done.returncode != 0 and "symbolic link" in done.stderr


def test_the_runtime_s_program_cannot_be_overwritten(engine: DockerEngine, tmp_path: Path) -> None:
    """CVE-2019-5736: a container whose program is its runtime's /proc/self/exe gets a copy, if anything."""
    program = Path(shutil.which("runc") or "/usr/sbin/runc").resolve()
    before = hashlib.sha256(program.read_bytes()).hexdigest()
    image = image_with(engine, {"bin/entry": "/proc/self/exe"}, 'ENTRYPOINT ["/bin/entry"]')
    engine.docker("run", "--rm", "--network", "none", image, "--version", check=False)
    engine.docker("run", "-d", "--name", "victim", "busybox", "sh", "-c", "while :; do for p in /proc/[0-9]*; do [ $p = /proc/1 ] || (echo bad > $p/exe) 2>/dev/null; done; done")  # fmt: skip
    for _ in range(3):
        engine.docker("exec", "victim", "/proc/self/exe", "true", check=False)
        engine.docker("exec", "victim", "true", check=False)
    assert hashlib.sha256(program.read_bytes()).hexdigest() == before


def test_copying_while_the_container_swaps_links(engine: DockerEngine, tmp_path: Path) -> None:
    """CVE-2018-15664, CVE-2019-14271: a path that turns into a link to the host's files during docker cp stays inside."""
    host = tmp_path / "host"
    host.mkdir()
    (host / "file").write_text("of the host")
    swap = (
        f"mkdir -p /d; echo inside > /d/file; ln -s {host} /l; while :; do mv /d /x; mv /l /d; mv /d /l; mv /x /d; done"
    )
    engine.docker("run", "-d", "--name", "swap", "busybox", "sh", "-c", swap)
    (tmp_path / "bad").write_text("from the container's side")
    stop = threading.Event()
    seen: list[str] = []

    def take() -> None:
        while not stop.is_set():
            done = engine.docker("cp", "swap:/d/file", "-", check=False)
            seen.append(done.stdout)

    thread = threading.Thread(target=take)
    thread.start()
    end = time.monotonic() + 2
    while time.monotonic() < end:
        engine.docker("cp", str(tmp_path / "bad"), "swap:/d/file", check=False)
    stop.set()
    thread.join()
    assert (host / "file").read_text() == "of the host" and os.listdir(host) == ["file"]
    assert seen and not any("of the host" in text for text in seen)


def test_an_exec_inherits_no_capabilities(engine: DockerEngine) -> None:
    """CVE-2022-24769, CVE-2022-29162: inheritable and ambient sets are empty, for any user; a plain user has none at all."""
    engine.docker("run", "-d", "--name", "caps", "busybox", "sleep", "1000")
    for words in (("run", "--rm", "busybox"), ("exec", "caps")):
        lines = engine.docker(*words, "grep", "Cap", "/proc/self/status").stdout.splitlines()
        sets = {line.split(":")[0]: int(line.split()[1], 16) for line in lines}
        assert sets["CapInh"] == sets["CapAmb"] == 0
        assert sets["CapEff"] == sets["CapBnd"] == 0xA80425FB
    lines = engine.docker("exec", "-u", "1000", "caps", "grep", "Cap", "/proc/self/status").stdout.splitlines()
    sets = {line.split(":")[0]: int(line.split()[1], 16) for line in lines}
    assert not sets["CapEff"] and not sets["CapPrm"] and not sets["CapInh"] and not sets["CapAmb"]
    for words in (("run", "--rm", "busybox"), ("exec", "caps")):
        fds = engine.docker(*words, "ls", "-l", "/proc/self/fd").stdout
        assert not any(line.split(" -> ")[-1].startswith("/") and "/proc/" not in line.split(" -> ")[-1] and "/dev/null" not in line for line in fds.splitlines() if " -> " in line), fds  # fmt: skip


def test_a_working_directory_of_an_image_leads_nowhere(engine: DockerEngine) -> None:
    """CVE-2024-21626: a descriptor of the host's file system that the runtime has open is no way out of the container."""
    mark = engine.base.name
    for number in (3, 5, 7, 8, 9):
        folder = f"/proc/self/fd/{number}"
        image = image_with(engine, {}, f"WORKDIR {folder}")
        script = "pwd -P; ls -d ../../../../../../../../../../var/lib; ls ../../.."
        done = engine.docker("run", "--rm", "--network", "none", image, "sh", "-c", script, check=False)
        assert "var/lib" not in done.stdout and mark not in done.stdout
        # It is refused, or is a plain folder of the container's own /proc.
        assert done.returncode != 0 or done.stdout.splitlines()[0].startswith("/proc/")


def test_a_working_directory_of_an_exec_leads_nowhere(engine: DockerEngine) -> None:
    """CVE-2024-21626, by docker exec."""
    engine.docker("run", "-d", "--name", "work", "busybox", "sleep", "1000")
    for number in range(3, 12):
        done = engine.docker("exec", "-w", f"/proc/self/fd/{number}", "work", "sh", "-c", "cd ../../../..; ls -d work", check=False)  # fmt: skip
        assert "work" not in done.stdout.split()


def test_a_subpath_of_a_volume_stays_in_it(engine: DockerEngine) -> None:
    """A volume's content may not choose what of the host is mounted."""
    engine.docker("volume", "create", "vol")
    engine.docker("run", "--rm", "-v", "vol:/v", "busybox", "sh", "-c", "ln -s / /v/root; ln -s ../../.. /v/up; mkdir /v/in; ln -s in /v/good; echo yes > /v/in/f")  # fmt: skip
    for name in ("root", "up"):
        done = engine.docker("run", "--rm", "--mount", f"type=volume,src=vol,dst=/m,volume-subpath={name}", "busybox", "ls", "/m", check=False)  # fmt: skip
        assert done.returncode != 0 and "path concatenation escapes the base directory" in done.stderr
    mounted = engine.docker("run", "--rm", "--mount", "type=volume,src=vol,dst=/m,volume-subpath=good", "busybox", "cat", "/m/f")  # fmt: skip
    assert mounted.stdout == "yes\n"
    engine.docker("volume", "rm", "vol")

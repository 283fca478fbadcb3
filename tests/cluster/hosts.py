"""Temporary hosts on this machine, so that `ray up` really runs, over real ssh.

Each host has network, pid, mount, uts and ipc namespaces of its own: an address on a bridge without a way out,
processes that no other host sees (``ray up`` runs ``ray stop``, which ends every Ray that it sees), a home, a /tmp and
a Python environment that it may change. All other files are shared, as over NFS.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from tests.support import PATIENCE

NET = "10.77.0"
HERE = Path(__file__).parent
NEEDED = ("ip", "unshare", "nsenter", "ssh", "ssh-keygen", "rsync", "/usr/sbin/sshd")
SSHD_CONFIG = """\
HostKey /run/sshd/host_key
PidFile none
AuthenticationMethods publickey
PermitRootLogin prohibit-password
UsePAM no
UseDNS no
MaxStartups 50
MaxSessions 50
"""
LAPTOP = """\
export PATH={venv}/bin:$PATH
export RAY_AUTH_MODE=token
"""
OTHERS = """\
export PIP_NO_INDEX=1 PIP_NO_BUILD_ISOLATION=0  # no registry is reached from here; 0 means: no isolation
"""


def missing() -> list[str]:
    """Return what this machine lacks for such hosts."""
    lacking = [] if os.geteuid() == 0 else ["root"]
    return lacking + [program for program in NEEDED if not shutil.which(program)]


class Hosts:
    """A laptop, a head and workers, which run within a ``with`` block.

    Parameters
    ----------
    folder : Path
        The folder of their disks.
    workers : int
    shared : list of Path
        Folders that all hosts see, at the same path.
    """

    def __init__(self, folder: Path, workers: int, shared: list[Path]) -> None:
        self.folder = folder
        self.workers = [f"w{i}" for i in range(1, workers + 1)]
        self.addresses = {"laptop": f"{NET}.1", "head": f"{NET}.2"}
        self.addresses |= {name: f"{NET}.{10 + i}" for i, name in enumerate(self.workers, 1)}
        self._first: dict[str, subprocess.Popen[str]] = {}
        venv = Path(sys.prefix)
        visible = [*shared, Path(sys.base_prefix), venv]
        (folder / "shared").write_text("".join(f"{path}\n" for path in visible))
        names = "".join(f"{address} {name}\n" for name, address in self.addresses.items())
        (folder / "etc-hosts").write_text("127.0.0.1 localhost\n" + names)
        shadow = re.sub("^root:[^:]*:", "root:*:", Path("/etc/shadow").read_text(), flags=re.MULTILINE)
        (folder / "etc-shadow").write_text(shadow)  # sshd without PAM refuses an account that is locked
        (folder / "ssh").mkdir()
        for key in (folder / "key", folder / "ssh" / "host_key"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
        (folder / "ssh" / "sshd_config").write_text(SSHD_CONFIG)
        for name in self.addresses:
            self._furnish(folder / name, venv)

    def _furnish(self, disk: Path, venv: Path) -> None:
        for name in ("venv", "work", "tmp", "home/ovr-ray/.venv", "home/.ssh"):
            (disk / name).mkdir(parents=True)
        (disk / "tmp").chmod(0o1777)
        (disk / "home" / ".ssh").chmod(0o700)
        key = "id_ed25519" if disk.name == "laptop" else "authorized_keys"
        shutil.copy(self.folder / ("key" if disk.name == "laptop" else "key.pub"), disk / "home" / ".ssh" / key)
        (disk / "home" / ".ssh" / key).chmod(0o600)
        (disk / "home" / ".profile").write_text(LAPTOP.format(venv=venv) if disk.name == "laptop" else OTHERS)
        (disk / "home" / ".bashrc").touch()  # Ray sources it

    def __enter__(self) -> Hosts:
        with ExitStack() as undo:
            undo.callback(self.__exit__)
            for name in self.addresses:
                _run("ip", "netns", "add", self._namespace(name))
            laptop = self._namespace("laptop")
            _run("ip", "-n", laptop, "link", "add", "br0", "type", "bridge")
            for name, address in self.addresses.items():
                device, namespace = "br0", laptop
                if name != "laptop":
                    device, namespace = "eth0", self._namespace(name)
                    peer = ("type", "veth", "peer", "name", device, "netns", namespace)
                    _run("ip", "-n", laptop, "link", "add", name, *peer)
                    _run("ip", "-n", laptop, "link", "set", name, "master", "br0", "up")
                _run("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", device)
                for up in ("lo", device):
                    _run("ip", "-n", namespace, "link", "set", up, "up")
                self.boot(name)
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._first:
            self.crash(name)
        for name in self.addresses:
            if (Path("/run/netns") / self._namespace(name)).exists():
                _run("ip", "netns", "del", self._namespace(name))

    def boot(self, name: str) -> None:
        """Start a host."""
        die_with_us = ["setpriv", "--pdeathsig", "KILL"]
        inside = ["ip", "netns", "exec", self._namespace(name), "nice", "-n", "5"]
        alone = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--propagation", "private", "--uts", "--ipc"]
        script = ["bash", str(HERE / "host.sh"), str(self.folder), name, self.addresses[name], sys.prefix]
        command = [*die_with_us, *inside, *alone, *script]
        with (self.folder / name / "boot.log").open("a") as log:
            first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True)
        self._first[name] = first
        assert first.stdout is not None
        if first.stdout.readline() != "up\n":
            raise AssertionError(f"{name} did not start: {(self.folder / name / 'boot.log').read_text()}")

    def crash(self, name: str) -> None:
        """SIGKILL everything that runs on a host, as a power cut does; its network stays."""
        first = self._first[name]
        if first.poll() is None:
            first.kill()  # --kill-child: process 1 of its pid namespace goes too, and the kernel ends the rest
            first.wait(30)

    def command(self, name: str, *command: str, folder: Path | None = None, **environment: str) -> list[str]:
        """Return the command that runs a command on a host, in a login shell, as ssh does."""
        enter = ["nsenter", "-t", str(_child(self._first[name].pid)), "--mount", "--uts", "--ipc", "--net", "--pid"]
        clean = ["env", "-i", f"HOME={Path.home()}", "USER=root", "LANG=C.UTF-8", "COLUMNS=100", "TERM=dumb"]
        set_here = " ".join(f"export {key}={value};" for key, value in environment.items())
        shell = ["bash", "-lc", f'cd "$0"; {set_here} exec "$@"', str(folder or "/"), *command]
        return [*enter, *clean, *shell]

    def start(self, name: str, *command: str, folder: Path | None = None) -> subprocess.Popen[str]:
        """Start a command on a host; its stderr goes into its stdout."""
        return subprocess.Popen(
            self.command(name, *command, folder=folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(
        self, name: str, *command: str, folder: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host; its stderr goes into its stdout."""
        return subprocess.run(
            self.command(name, *command, folder=folder, **environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def _namespace(self, name: str) -> str:
        return f"ovr{os.getpid()}-{name}"


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def _child(pid: int) -> int:
    return int((Path("/proc") / str(pid) / "task" / str(pid) / "children").read_text().split()[0])

"""Real Ray nodes as processes of their own, for tests of clusters."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

StartNode = Callable[..., "RayNode"]
_START_S = 600.0
_MAX_STARTS = 8


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RayNode:
    """`ray start --block` in a process of its own; the first one is the head.

    Args:
        head: The node to join; None makes a head with a job server.
        num_cpus: CPUs that it offers.
        labels: Ray's node labels.
        host: Address of this node.
        namespace: Network namespace to run in.
        own_folder: Folder in whose place the node has an empty one of its own.
    """

    def __init__(
        self,
        head: "RayNode | None",
        *,
        num_cpus: int = 2,
        labels: str = "",
        host: str = "127.0.0.1",
        namespace: str = "",
        own_folder: Path | None = None,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rn", dir="/tmp"))  # socket paths are short
        ports = {
            "--node-manager-port": free_port(),
            "--object-manager-port": free_port(),
            "--dashboard-agent-grpc-port": free_port(),
            "--dashboard-agent-listen-port": free_port(),
            "--runtime-env-agent-port": free_port(),
            "--metrics-export-port": free_port(),
        }
        if head is None:
            self.host, self.gcs, self.dashboard = host, f"{host}:{free_port()}", free_port()
            ports |= {
                "--port": int(self.gcs.split(":")[1]),
                "--dashboard-port": self.dashboard,
                "--ray-client-server-port": free_port(),
            }
            line = ["--head", "--include-dashboard=true", f"--temp-dir={self.folder}"]
            # Each process less helps: a raylet whose agents are not up after 15 s gives up.
            line += ["--no-monitor"]
            line += [f"--dashboard-host={host}"]
        else:
            self.gcs = head.gcs
            line = [f"--address={head.gcs}"]
        line += [f"{flag}={port}" for flag, port in ports.items()]
        line += ["--object-store-memory=150000000", f"--num-cpus={num_cpus}", "--num-gpus=0"]
        line += [f"--node-ip-address={host}", "--disable-usage-stats", "--block"]
        line += ["--include-log-monitor=false"]
        line += [f"--labels={labels}"] if labels else []
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.log = (self.folder / "node.log").open("a")
        if (Path.home() / ".ray" / "auth_token").is_file():
            environment["RAY_AUTH_MODE"] = "token"  # a head takes it by itself, a worker does not
        command = [str(Path(sys.executable).with_name("ray")), "start", *line]
        if own_folder is not None:
            # The session's folder is the head's; a node must not clean up what another unpacked.
            folders = [own_folder]
            if head is not None:
                folders.append((head.folder / "session_latest" / "runtime_resources").resolve())
            mounts = " && ".join(f"mount -t tmpfs -o mode=700 none {folder}" for folder in folders)
            mount = f'{mounts} && exec "$@"'
            command = ["unshare", "--mount", "sh", "-c", mount, "sh", *command]
        if namespace:
            command = ["ip", "netns", "exec", namespace, *command]
        self._start: Callable[[], subprocess.Popen[bytes]] = lambda: subprocess.Popen(
            command,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        self.process = self._start()

    @property
    def url(self) -> str:
        """Of the job server."""
        return f"http://{self.host}:{self.dashboard}"

    def wait_started(self) -> None:
        """Return when the node runs. On a busy machine Ray gives up after 30 s: start again."""
        deadline, starts = time.monotonic() + _START_S, 1
        path = self.folder / "node.log"
        while "Ray runtime started" not in (text := path.read_text()):
            if self.process.poll() is not None:
                if starts == _MAX_STARTS:
                    raise RuntimeError(f"ray start ended:\n{text[-3000:]}")
                self.log.truncate(0)
                self.process, starts = self._start(), starts + 1
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {_START_S:g} s for a node:\n{text[-3000:]}")
            time.sleep(0.2)

    def wait_ready(self) -> None:
        """Return when the head's job server answers."""
        self.wait_started()
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.url}/api/jobs/", timeout=5):
                    return
            except urllib.error.HTTPError as error:
                if error.code in (401, 403):  # it is there, and wants Ray's own client
                    return
            except OSError:
                pass
            time.sleep(0.5)
        raise TimeoutError(f"waited {_START_S:g} s for the job server at {self.url}")

    def children(self) -> list[Any]:
        """Processes of the node."""
        with suppress(psutil.NoSuchProcess):
            return list(psutil.Process(self.process.pid).children(recursive=True))
        return []

    def kill(self) -> None:
        """End the node at once with all of its processes, as a machine that loses power."""
        tree = self.children()
        with suppress(psutil.NoSuchProcess):
            tree.append(psutil.Process(self.process.pid))
        for process in tree:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(tree, timeout=30)
        self.process.wait(timeout=30)
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def start_node() -> Iterator[StartNode]:
    """`start_node(head, ...)` makes a `RayNode`; all are ended after the module's tests."""
    nodes: list[RayNode] = []

    def start(head: RayNode | None = None, **options: Any) -> RayNode:
        nodes.append(RayNode(head, **options))
        return nodes[-1]

    yield start
    for node in reversed(nodes):
        node.kill()


@pytest.fixture(scope="module")
def of_nodes() -> Iterator[None]:
    """`ray start` as in a shell, without what a command run in this process has set."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "GLOO_SOCKET_IFNAME"):
            patch.delenv(name, raising=False)
        yield

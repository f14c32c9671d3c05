"""The control endpoints under /sim: ordered faults, scenarios, and the log of what was served."""

import orjson

from services.simulator.chat_request import parse_object
from services.simulator.faults import KINDS
from services.simulator.refusals import Refused
from services.simulator.simulator import Simulator
from services.simulator.surfaces.exchange import Exchange

MAX_PAGE = 10_000


class ControlSurface:
    """Lets tests and operators steer one simulator."""

    def __init__(self, simulator: Simulator):
        self._simulator = simulator

    async def add_fault(self, exchange: Exchange) -> None:
        """POST /sim/faults"""
        order = self._simulator.fault_book.add(parse_object(await exchange.body()))
        await exchange.respond(201, orjson.dumps(order.as_dict()))

    async def list_faults(self, exchange: Exchange) -> None:
        """GET /sim/faults"""
        known = {name: {"does": kind.does, "unit": kind.unit or None, "default": kind.default} for name, kind in KINDS.items()}
        orders = [order.as_dict() for order in self._simulator.fault_book.orders()]
        await exchange.respond(200, orjson.dumps({"faults": orders, "known": known}))

    async def delete_faults(self, exchange: Exchange) -> None:
        """DELETE /sim/faults"""
        await exchange.respond(200, orjson.dumps({"deleted": self._simulator.fault_book.remove()}))

    async def delete_fault(self, exchange: Exchange) -> None:
        """DELETE /sim/faults/{id}"""
        order_id = exchange.path.rpartition("/")[2]
        if not self._simulator.fault_book.remove(order_id):
            raise Refused(f"There is no fault '{order_id}'.", status=404)
        await exchange.respond(200, orjson.dumps({"deleted": 1}))

    async def list_scenarios(self, exchange: Exchange) -> None:
        """GET /sim/scenarios"""
        await exchange.respond(200, orjson.dumps({"scenarios": self._simulator.scenarios.names()}))

    async def put_scenario(self, exchange: Exchange) -> None:
        """PUT /sim/scenarios/{name}"""
        name = exchange.path.rpartition("/")[2]
        scenario = self._simulator.scenarios.put(name, parse_object(await exchange.body()))
        await exchange.respond(200, orjson.dumps({"name": scenario.name, "steps": len(scenario.steps)}))

    async def delete_scenario(self, exchange: Exchange) -> None:
        """DELETE /sim/scenarios/{name}"""
        name = exchange.path.rpartition("/")[2]
        if not self._simulator.scenarios.remove(name):
            raise Refused(f"There is no scenario '{name}'.", status=404)
        await exchange.respond(200, orjson.dumps({"deleted": 1}))

    async def read_log(self, exchange: Exchange) -> None:
        """GET /sim/log?after=0&limit=1000&run=run-7"""
        after, limit = _number(exchange, "after", 0, 2**53), _number(exchange, "limit", 1_000, MAX_PAGE)
        page = self._simulator.log.page(after, limit, exchange.query("run") or "")
        await exchange.respond(200, page)

    async def clear_log(self, exchange: Exchange) -> None:
        """DELETE /sim/log"""
        await exchange.respond(200, orjson.dumps({"deleted": self._simulator.log.clear()}))

    async def in_flight(self, exchange: Exchange) -> None:
        """GET /sim/in-flight"""
        await exchange.respond(200, orjson.dumps({"requests": self._simulator.log.in_flight()}))


def _number(exchange: Exchange, name: str, default: int, high: int) -> int:
    text = exchange.query(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 16 or int(text) > high:
        raise Refused(f"'{name}' must be a whole number from 0 to {high}.", param=name)
    return int(text)

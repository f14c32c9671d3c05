"""What `up` starts, and on which ports."""

import pytest

from services.cli.failure import UsageProblem
from services.cli.up.environment import address_book
from services.cli.up.plan import make_plan, parse_replicas, service_name
from services.cli.up.ports import LISTENERS


def ports(plan, name, index=0):
    return next(dict(p.ports) for p in plan.processes if (p.name, p.index) == (name, index))


def names(plan):
    return {p.name for p in plan.processes}


def test_the_fixed_ports_are_the_documented_ones():
    plan = make_plan()
    assert ports(plan, "gateway") == {"http": 8080, "metrics": 9461}
    assert ports(plan, "orchestrator") == {"grpc": 50051, "metrics": 9462}
    assert ports(plan, "llm_gateway") == {"http": 8081, "grpc": 50052, "metrics": 9463}
    assert ports(plan, "tool_executor") == {"grpc": 50053, "metrics": 9464}
    assert ports(plan, "memory") == {"grpc": 50054, "metrics": 9465}
    assert ports(plan, "simulator") == {"http": 8090, "metrics": 9466}


def test_port_base_gives_sixteen_ports_in_the_documented_order():
    plan = make_plan(port_base=20000)
    assert ports(plan, "gateway") == {"http": 20000, "metrics": 20007}
    assert ports(plan, "llm_gateway") == {"http": 20001, "grpc": 20003, "metrics": 20009}
    assert ports(plan, "orchestrator") == {"grpc": 20002, "metrics": 20008}
    assert ports(plan, "tool_executor") == {"grpc": 20004, "metrics": 20010}
    assert ports(plan, "memory") == {"grpc": 20005, "metrics": 20011}
    assert ports(plan, "simulator") == {"http": 20006, "metrics": 20012}
    assert [ports(plan, s)["store"] for s in ("valkey_state", "valkey_cache", "milvus")] == [20013, 20014, 20015]
    assert sorted(port for p in plan.processes for port in p.ports.values()) == list(range(20000, 20016))


def test_no_two_listeners_share_a_port():
    assert len({li.default for li in LISTENERS}) == len({li.offset for li in LISTENERS}) == len(LISTENERS)


@pytest.mark.parametrize("base", [0, -1, 65521, 70000])
def test_a_port_base_without_room_is_refused(base):
    with pytest.raises(UsageProblem, match="port-base"):
        make_plan(port_base=base)


@pytest.mark.parametrize(
    ("only", "started"),
    [
        ("gateway", {"gateway", "valkey_state"}),
        ("llm-gateway", {"llm_gateway", "valkey_state", "valkey_cache", "simulator"}),
        ("llm_gateway", {"llm_gateway", "valkey_state", "valkey_cache", "simulator"}),
        ("memory", {"memory", "valkey_state", "valkey_cache", "milvus"}),
        ("simulator", {"simulator"}),
    ],
)
def test_only_starts_a_service_with_the_stores_it_needs(only, started):
    plan = make_plan(only=[only])
    assert names(plan) == started
    assert plan.partial == (only in ("gateway", "memory"))


def test_a_plan_is_partial_when_a_service_lacks_one_that_it_calls():
    assert make_plan(only=["memory"]).partial
    assert not make_plan(only=["memory", "llm-gateway"]).partial


def test_without_simulated_models_there_is_no_simulator():
    assert "simulator" not in names(make_plan(simulator=False))
    assert "simulator" not in names(make_plan(only=["llm_gateway"], simulator=False))


def test_stores_come_first_and_everything_is_started():
    plan = make_plan()
    assert [p.name for p in plan.processes[:3]] == ["valkey_state", "valkey_cache", "milvus"]
    assert len(plan.processes) == 9
    assert not plan.partial


def test_replicas_beyond_the_first_have_no_fixed_port():
    plan = make_plan(replicas=parse_replicas(["orchestrator=3"]))
    assert ports(plan, "orchestrator", 0)["grpc"] == 50051
    assert ports(plan, "orchestrator", 1) == ports(plan, "orchestrator", 2) == {"grpc": 0, "metrics": 0}
    assert [p.label for p in plan.processes if p.name == "orchestrator"] == ["orchestrator-0", "orchestrator-1", "orchestrator-2"]
    assert 0 not in [port for _, port in plan.fixed_ports()]


@pytest.mark.parametrize(
    "value",
    ["orchestrator", "orchestrator=", "orchestrator=0", "orchestrator=x", "orchestrator=99", "valkey_state=2", "nobody=2", "simulator=2"],
)
def test_replicas_that_make_no_sense_are_refused(value):
    with pytest.raises(UsageProblem):
        parse_replicas([value])


def test_replicas_of_what_is_not_started_are_refused():
    with pytest.raises(UsageProblem, match="orchestrator"):
        make_plan(only=["gateway"], replicas={"orchestrator": 2})


def test_a_service_name_takes_dashes_and_underscores():
    assert service_name("tool-executor") == service_name("tool_executor") == "tool_executor"
    with pytest.raises(UsageProblem, match="gateway"):
        service_name("gatway")


def test_the_address_book_lists_every_replica_of_the_grpc_services():
    book = address_book(
        [("orchestrator", {"grpc": 1, "metrics": 2}), ("orchestrator", {"grpc": 3}), ("gateway", {"http": 4}), ("milvus", {"store": 5})]
    )
    assert book == {"orchestrator": ["127.0.0.1:1", "127.0.0.1:3"]}

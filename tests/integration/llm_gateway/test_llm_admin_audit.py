"""Audit records of keys that administrators of the model port change."""

from datetime import timedelta

import orjson

from services.common.audit import AuditStream, user_hash
from tests.integration.llm_gateway.test_llm_admin_api import generated, ports

__all__ = ["ports"]


async def test_each_change_of_a_key_has_an_audit_record_that_says_who_and_what(ports, valkey):
    made = await generated(ports, user_id="ana", key_alias="Marzipan")
    admin = await generated(ports, user_id="root", key_type="management")
    await ports.call("POST", "/key/update", {"key": made["token"], "rpm_limit": 5})
    await ports.call("POST", "/key/block", {"key": made["token"]}, key=admin["key"])
    await ports.call("POST", "/key/unblock", {"key": made["token"]})
    _, fresh = await ports.call("POST", "/key/regenerate", {"key": made["token"]})
    await ports.call("POST", "/key/delete", {"keys": [fresh["key"]]})
    assert (await ports.call("POST", "/key/block", {"key": made["token"]}))[0] == 404
    stream = AuditStream(valkey, timedelta(days=1))
    raw = [entry.record for entry in await stream.read("default")]
    records = [one for one in map(orjson.loads, raw) if one["target_key"] == made["token"]]
    assert [one["action"] for one in records] == ["made", "changed", "blocked", "unblocked", "rotated", "ended"]
    assert [one["key_id"] for one in records] == ["master", "master", admin["token"], "master", "master", "master"]
    assert [one["target_blocked"] for one in records] == [False, False, True, False, False, False]
    assert {one["target_user_hash"] for one in records} == {user_hash("default", "ana")}
    for said in (made["key"], fresh["key"], admin["key"], "Marzipan", "ana"):
        assert f'"{said}"'.encode() not in b"".join(raw)

"""EraseSubject as it is called: whoever is erased stands in no answer, no file and no store, and what was spent stays."""

from bulkhead.llm.v1 import llm_pb2

from services.common import testing
from services.common.accounts import Accounts
from services.common.valkey import connect

USER = "jane-roe-4711"
BODY = {"model": "main", "messages": [{"role": "user", "content": "say exactly: hello"}], "max_tokens": 20}


async def test_an_erased_user_is_nowhere_and_what_was_spent_stays(serve, sim, models, state_url, tmp_path):
    archive = tmp_path / "ledger"
    async with serve(models(sim.url), ledger_dir=archive, files_dir=tmp_path / "files") as own:
        client = connect(state_url)
        accounts = Accounts(client)
        issued = await accounts.create_key(tenant="acme", user=USER, tier="enterprise", scopes=["*"], team="")
        auth = {"authorization": f"Bearer {issued.secret}"}
        async with own.http.post(f"{own.url}/v1/chat/completions", json=BODY, headers={**auth, "idempotency-key": "once"}) as answer:
            assert answer.status == 200
        assert (await own.post("/v1/chat/completions", BODY))[0] == 200

        async def logged():
            async with own.http.get(f"{own.url}/spend/logs", headers={"authorization": f"Bearer {own.key}"}) as answer:
                lines = await answer.json()
                return lines if len(lines) >= 2 else None

        before = await testing.eventually_async(logged, "both calls stand in the ledger")
        assert sorted(line["user"] for line in before) == ["ana", USER]
        with testing.calling(own.identities):
            erased = await own.llm.EraseSubject(llm_pb2.EraseSubjectRequest(user=USER, idempotency_key="e1"))
            counts = {kind.kind: kind.count for kind in erased.erased}
            assert (counts["ledger_lines"], counts["account_records"], counts["replayable_answers"]) == (1, 1, 1)
            again = await own.llm.EraseSubject(llm_pb2.EraseSubjectRequest(user=USER, idempotency_key="e2"))
            assert not any(kind.count for kind in again.erased)
        after = await logged()
        assert sorted(line["user"] for line in after) == ["ana", "erased"]
        assert sum(line["spend"] for line in after) == sum(line["spend"] for line in before) > 0
        async with own.http.get(f"{own.url}/v1/models", headers=auth) as answer:
            assert answer.status == 401
        assert not [key for key in await client.keys("*") if USER.encode() in key or USER.encode() in await client.dump(key)]
        await client.aclose()
    # At its end the gateway has copied all of the ledger.
    copied = b"".join(path.read_bytes() for path in archive.rglob("*.jsonl"))
    assert copied.count(b"\n") == 2
    assert USER.encode() not in copied

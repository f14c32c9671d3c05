"""Blobs in a folder and in a bucket: one contract for both, and a bucket that is away, wrong, slow or damaged."""

import asyncio
import datetime
import ipaddress
import ssl
import uuid
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.common.errors import Internal, Overloaded
from services.common.settings import StartRefused
from services.orchestrator.adapters.blob_bucket import Bucket, BucketBlobs
from services.orchestrator.adapters.blob_folder import FolderBlobs
from services.orchestrator.adapters.segment_files import SegmentFiles, opened_segments
from services.orchestrator.segments import pack, unpack
from services.orchestrator.settings import Settings
from services.orchestrator.testing import s3_server

SEGMENT, CONTENT = pack([[b"%d-0" % seq, [b"d", uuid.uuid4().bytes * 64]] for seq in range(1, 40)])


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server.s3_server(tmp_path_factory.mktemp("s3")) as made:
        yield made


def bucket_of(server, *, endpoint="", prefix="", name=s3_server.BUCKET, credentials=None, ca_file=None, request_timeout_s=5.0):
    url = f"s3://{name}/{prefix or uuid.uuid4().hex}/deep"
    bucket = Bucket(url, endpoint or server.endpoint, credentials_dir=credentials or server.credentials, ca_file=ca_file)
    return BucketBlobs(bucket, request_timeout_s=request_timeout_s, call_timeout_s=10.0)


@pytest.fixture(params=["folder", "bucket"])
def blobs(request, tmp_path):
    if request.param == "folder":
        return FolderBlobs(tmp_path / "made" / "when" / "needed")
    return bucket_of(request.getfixturevalue("server"))


@pytest.mark.parametrize("content", [b"", b"\x00\xff" * 7, bytes(range(256)) * 20_000], ids=["empty", "small", "5 MB"])
async def test_what_was_put_is_what_is_got(blobs, content):
    assert await blobs.get("ab/abc", "1-2-f") is None
    assert await blobs.names("ab/abc") == []
    await blobs.put("ab/abc", "1-2-f", b"before")
    await blobs.put("ab/abc", "1-2-f", content)
    assert await blobs.get("ab/abc", "1-2-f") == content
    assert await blobs.names("ab/abc") == ["1-2-f"]


async def test_places_are_apart_and_deletion_takes_the_named_only(blobs):
    for place, name in (("ab/abc", "1"), ("ab/abc", "2"), ("ab/abc", "3"), ("ab/abcd", "1"), ("ab", "1")):
        await blobs.put(place, name, f"{place} {name}".encode())
    await blobs.delete("ab/abc", ["1", "3", "never there"])
    assert await blobs.names("ab/abc") == ["2"]
    assert (await blobs.get("ab/abc", "1"), await blobs.get("ab/abcd", "1")) == (None, b"ab/abcd 1")
    await blobs.delete("ab/abc", ["2"])
    await blobs.delete("ab/abc", ["2"])
    await blobs.delete("nowhere", [])
    assert await blobs.names("ab/abc") == []
    assert await blobs.get("ab", "1") == b"ab 1"


async def test_many_at_once_and_the_same_twice_at_once(blobs):
    names = [f"{number}-x" for number in range(40)]
    await asyncio.gather(*(blobs.put("p/q", name, name.encode()) for name in names * 2))
    assert sorted(await blobs.names("p/q")) == sorted(names)
    assert await asyncio.gather(*(blobs.get("p/q", name) for name in names)) == [name.encode() for name in names]
    await asyncio.gather(*(blobs.delete("p/q", names) for _ in range(2)))
    assert await blobs.names("p/q") == []


async def test_segments_are_dropped_up_to_a_number(blobs):
    files = SegmentFiles(blobs)
    first, second = pack([[b"1-0", [b"d", b"a"]]]), pack([[b"2-0", [b"d", b"b"]]])
    for segment, content in (first, second):
        await files.put("acme", "t", segment, content)
    await files.drop("acme", "t", 2)
    assert await files.get("acme", "t", first[0]) is None
    assert unpack(second[0], await files.get("acme", "t", second[0])) == [[b"2-0", [b"d", b"b"]]]
    await files.drop("acme", "t", 3)
    assert await files.get("acme", "t", second[0]) is None


async def test_objects_lie_below_the_prefix_and_no_name_of_a_caller_is_in_a_key(server):
    prefix = uuid.uuid4().hex
    await SegmentFiles(bucket_of(server, prefix=prefix)).put("acme", "../../x", SEGMENT, CONTENT)
    (path,) = (path for path in server.objects() if prefix in str(path))
    parts = path.relative_to(server.folder / s3_server.BUCKET).parts
    assert parts[:2] == (prefix, "deep")
    assert (parts[3][:2], parts[4]) == (parts[2], SEGMENT.encode())


CALLS = {
    "put": lambda files: files.put("acme", "t", SEGMENT, CONTENT),
    "get": lambda files: files.get("acme", "t", SEGMENT),
    "drop": lambda files: files.drop("acme", "t", 100),
}


async def all_calls(files):
    """Reasons of what `files` raises, by call."""
    found = {}
    for name, call in CALLS.items():
        with pytest.raises(Overloaded) as raised:
            await call(files)
        found[name] = (raised.value.reason, raised.value.retry_after_s)
    return found


UNAVAILABLE = dict.fromkeys(("put", "get", "drop"), ("SEGMENTS_UNAVAILABLE", 1.0))


async def test_a_bucket_that_is_missing_is_unavailable_and_no_lost_segment(server):
    assert await all_calls(SegmentFiles(bucket_of(server, name="no-such-bucket"))) == UNAVAILABLE


@pytest.mark.parametrize(("key", "secret"), [(s3_server.KEY, "another"), ("another", s3_server.SECRET)])
async def test_wrong_credentials_are_unavailable_until_the_files_are_right(server, tmp_path, key, secret, monkeypatch):
    monkeypatch.setattr("services.orchestrator.adapters.blob_bucket.CREDENTIALS_KEPT", -timedelta(minutes=1))
    folder = s3_server.credentials_in(tmp_path / "wrong", key, secret)
    files = SegmentFiles(bucket_of(server, credentials=folder))
    assert await all_calls(files) == UNAVAILABLE
    s3_server.credentials_in(folder)
    await files.put("acme", "t", SEGMENT, CONTENT)
    (folder / "access_key_id").unlink()
    assert await all_calls(files) == UNAVAILABLE


async def test_a_server_that_is_away_is_unavailable(server, tmp_path):
    with s3_server.s3_server(tmp_path / "other") as other:
        files = SegmentFiles(bucket_of(other, prefix="p"))
        await files.put("acme", "t", SEGMENT, CONTENT)
        other.process.kill()
        assert await all_calls(files) == UNAVAILABLE


async def test_a_server_that_errs_for_a_moment_is_asked_again(server):
    async with s3_server.faulty(server) as faults:
        files = SegmentFiles(bucket_of(server, endpoint=faults.endpoint))
        faults.next = ["away", "away"]
        await files.put("acme", "t", SEGMENT, CONTENT)
        assert faults.seen == ["PUT away", "PUT away", "PUT", "GET"]
        faults.next, faults.seen[:] = ["away"], []
        assert await files.get("acme", "t", SEGMENT) == CONTENT
        faults.next = ["away"]
        await files.drop("acme", "t", 100)
        assert faults.seen == ["GET away", "GET", "GET away", "GET", "DELETE"]
        # The bound: a server that errs for good is given up.
        faults.next = ["away"] * 100
        with pytest.raises(Overloaded):
            await files.get("acme", "t", SEGMENT)
        assert len(faults.next) == 96


async def test_an_answer_that_breaks_off_is_never_taken_for_the_whole(server):
    async with s3_server.faulty(server) as faults:
        files = SegmentFiles(bucket_of(server, endpoint=faults.endpoint))
        await files.put("acme", "t", SEGMENT, CONTENT)
        faults.next = ["torn"] * 100
        with pytest.raises(Overloaded) as raised:
            await files.get("acme", "t", SEGMENT)
        assert raised.value.reason == "SEGMENTS_UNAVAILABLE"
        faults.next = []
        assert await files.get("acme", "t", SEGMENT) == CONTENT


async def test_a_server_that_does_not_answer_is_given_up_and_the_loop_goes_on_meanwhile(server):
    async with s3_server.faulty(server) as faults:
        files = SegmentFiles(bucket_of(server, endpoint=faults.endpoint, request_timeout_s=0.1))
        faults.next = ["silent"] * 100
        beats = 0

        async def beat():
            nonlocal beats
            while True:
                await asyncio.sleep(0.01)
                beats += 1

        beating = asyncio.create_task(beat())
        for name, call in CALLS.items():
            before = beats
            with pytest.raises(Overloaded, match="cannot be used"):
                await call(files)
            # There is time for dozens; a call that blocked would leave room for one.
            assert beats > before + 4, name
        beating.cancel()
        faults.next = ["silent"]
        await files.put("acme", "t", SEGMENT, CONTENT)


@pytest.fixture
def authority(tmp_path):
    """PEM of a key and of a certificate of its own for this address."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bucket")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path, form = tmp_path / "tls.pem", (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(key.private_bytes(*form) + made.public_bytes(serialization.Encoding.PEM))
    return path


async def test_a_private_server_is_believed_over_tls_where_its_certificate_is_known(server, authority):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority)
    async with s3_server.faulty(server, context) as secured:
        assert await all_calls(SegmentFiles(bucket_of(server, endpoint=secured.endpoint))) == UNAVAILABLE
        assert secured.seen == []
        files = SegmentFiles(bucket_of(server, endpoint=secured.endpoint, ca_file=authority))
        await files.put("acme", "t", SEGMENT, CONTENT)
        assert await files.get("acme", "t", SEGMENT) == CONTENT
        assert secured.seen == ["PUT", "GET", "GET"]


def test_certificates_that_are_none_are_refused_at_the_start(server, tmp_path):
    (tmp_path / "ca.pem").write_text("no certificate")
    settings = Settings(**server.settings("p"), segments_ca_file=tmp_path / "ca.pem")
    with pytest.raises(StartRefused, match=r"BULKHEAD_SEGMENTS_CA_FILE: .*ca\.pem"):
        opened_segments(settings)


async def test_an_object_that_was_cut_is_damaged_and_never_answered(server):
    prefix = uuid.uuid4().hex
    blobs = bucket_of(server, prefix=prefix)
    files = SegmentFiles(blobs)
    await files.put("acme", "t", SEGMENT, CONTENT)
    (path,) = (path for path in server.objects() if prefix in str(path))
    await blobs.put("/".join(path.parts[-3:-1]), path.name, CONTENT[:-5])
    with pytest.raises(Internal) as damaged:
        unpack(SEGMENT, await files.get("acme", "t", SEGMENT))
    assert damaged.value.reason == "SEGMENT_DAMAGED"
    # What lies on the server's disk is not what it says it is.
    path.write_bytes(CONTENT[:-9])
    with pytest.raises(Overloaded):
        await files.get("acme", "t", SEGMENT)


async def test_what_does_not_read_back_as_it_was_written_is_no_success(server):
    """The log is deleted on the strength of it."""

    class Forgetful(BucketBlobs):
        async def put(self, place, name, content):
            await super().put(place, name, content[:-1])

    made = bucket_of(server)
    made.__class__ = Forgetful
    with pytest.raises(Internal) as damaged:
        await SegmentFiles(made).put("acme", "t", SEGMENT, CONTENT)
    assert damaged.value.reason == "SEGMENT_DAMAGED"

"""`bulkhead up` encrypts what it keeps of people, also in a data folder from before it did."""

import subprocess

import pytest

from services.common import testing
from tests import raw_content
from tests.e2e.api import Api, answer_of
from tests.e2e.harness import start_platform

pytestmark = pytest.mark.system

PLAIN, SEALED = "plainquest", "sealquest"


def of_threads(platform):
    """Words that stand in what is kept of threads and sessions, with the keys that they stand in."""
    found = {}
    for name, content in raw_content.of_store(f"redis://127.0.0.1:{platform.base + 13}"):
        if name.startswith(("t:{", "memory:")):
            for word in (PLAIN, SEALED):
                if word.encode() in content:
                    found.setdefault(word, set()).add(name)
    return found


def test_a_data_folder_of_before_is_read_and_goes_on_encrypted(otlp, tmp_path):
    receiver, port = otlp
    data_dir, keys = tmp_path / "data", tmp_path / "data/keys/envelope.json"
    old = start_platform(data_dir, testing.free_port_base(), receiver, port, env={"BULKHEAD_ENVELOPE_KEYS_FILE": ""})
    try:
        with Api(old.url, old.key) as api:
            before = api.turn("t", f"My project has the code name {PLAIN}.", agent="assistant")[0]["run_id"]
        assert PLAIN in of_threads(old)
        assert not keys.exists()
    finally:
        old.process.stop()
    new = start_platform(data_dir, testing.free_port_base(), receiver, port)
    try:
        with Api(new.url, new.key) as api:
            assert PLAIN in answer_of(api.turn("t", "What is the code name of my project?", agent="assistant"))
            after = api.turn("t", f"My house has the code name {SEALED}.", agent="assistant")[0]["run_id"]
            assert SEALED in answer_of(api.turn("t", "What is the code name of my house?", agent="assistant"))
            assert (PLAIN in str(api.run(before)), SEALED in str(api.run(after))) == (True, True)
        found = of_threads(new)
        assert PLAIN in found
        assert SEALED not in found
        assert keys.stat().st_mode & 0o777 == 0o600
        doctor = testing.python("-m", "services.cli", "doctor", "--data-dir", str(data_dir))
        assert f"encrypted with the keys in {keys}" in subprocess.run(doctor, capture_output=True, text=True, cwd=testing.ROOT).stdout
        keys.rename(keys.with_suffix(".away"))
        told = subprocess.run(doctor, capture_output=True, text=True, cwd=testing.ROOT)
        assert (told.returncode, "envelope.json are missing" in told.stdout) == (1, True)
    finally:
        new.process.stop()
    with pytest.raises(AssertionError, match="data is encrypted with it: put it back"):
        start_platform(data_dir, testing.free_port_base(), receiver, port)
    keys.with_suffix(".away").rename(keys)
    again = start_platform(data_dir, testing.free_port_base(), receiver, port)
    try:
        with Api(again.url, again.key) as api:
            assert SEALED in str(api.run(after))
    finally:
        again.process.stop()

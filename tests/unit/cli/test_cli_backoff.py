"""How long a process that ended waits."""

from services.cli.up.backoff import Backoff


def test_it_doubles_from_a_fifth_of_a_second_to_ten_seconds():
    backoff = Backoff()
    delays = [backoff.after(uptime_s=1.0) for _ in range(8)]
    assert delays == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]


def test_a_process_that_was_up_for_long_starts_over():
    backoff = Backoff()
    for _ in range(5):
        backoff.after(uptime_s=0.0)
    assert backoff.after(uptime_s=30.0) == 0.2
    assert backoff.after(uptime_s=29.9) == 0.4

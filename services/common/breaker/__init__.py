"""Circuit breakers that all replicas of a service share, one by name, with one half-open probe at a time in the whole fleet.

breakers = Breakers(valkey, key="llm:{{d:{}}}:breaker".format, channel="llm:breakers")
if breakers.is_open(name):                        # a dict look-up
    probe = await breakers.probe(name)            # None: somebody else is at it, or it is too early
breakers.succeeded(name)                          # counted here, told once a second
breakers.failed(name, retry_after_s=3.0)          # told at once, not waited for
"""

from services.common.breaker._breakers import Breakers, Health, Probe, Sync
from services.common.breaker._circuit import BreakerPolicy, Circuit

__all__ = ["BreakerPolicy", "Breakers", "Circuit", "Health", "Probe", "Sync"]

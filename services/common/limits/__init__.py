"""Tier policies and token buckets: mechanisms that several owners of limits share."""

from services.common.limits._buckets import Bucket, BucketsShort, Level, TokenBuckets
from services.common.limits._policies import Policies, TierPolicy, parse_policies
from services.common.limits._requests import request_buckets

__all__ = [
    "Bucket", "BucketsShort", "Level", "Policies", "TierPolicy", "TokenBuckets", "parse_policies", "request_buckets",
]  # fmt: skip

"""Tier policies and token buckets: mechanisms that several owners of limits share."""

from services.common.limits._buckets import Bucket, TokenBuckets
from services.common.limits._policies import Policies, TierPolicy, parse_policies

__all__ = ["Bucket", "Policies", "TierPolicy", "TokenBuckets", "parse_policies"]

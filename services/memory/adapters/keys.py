"""Names of keys in the state store. Everything of one owner shares a hash tag, so that one function may touch it in a cluster.

Ids are the caller's text, so the tag is a digest of them and never the text itself.
"""

import hashlib


def tag(*parts: str) -> str:
    """A hash tag of an owner such as (tenant, user); no two lists of parts give the same."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(4, "big"))
        digest.update(raw)
    return "{" + digest.hexdigest()[:32] + "}"

"""Filters as templates with checked parameters.

Milvus takes templates with parameters of their own, Milvus Lite does not parse them, so they are filled in here, once
for both: a parameter is an integer, or a string of a narrow alphabet in which nothing can end a literal.
"""

import hashlib
import re
import time
from string import Template

from services.memory.ports import Among

_PLAIN = re.compile(r"[A-Za-z0-9._:@/+=|-]{1,128}", re.ASCII)
DOCUMENTS = Template('tenant_id == $tenant and kind == "document" and expires_at > $now')
SOME_DOCUMENTS = Template('tenant_id == $tenant and kind == "document" and doc_id in $ids and expires_at > $now')
MEMORIES = Template('tenant_id == $tenant and subject_id == $subject and kind == "memory" and expires_at > $now')
VERSIONS = Template('tenant_id == $tenant and kind == "document" and doc_id == $doc and doc_version >= $first and doc_version <= $last')
OF_SUBJECT = Template('tenant_id == $tenant and subject_id == $subject and kind == "memory"')
ONE_MEMORY = Template('tenant_id == $tenant and pk == $pk and kind == "memory"')
# The same filter text for a while is found in the store's cache of parsed filters; records are checked to the millisecond.
NOW_STEP_MS = 10_000


def stored_id(value: str) -> str:
    """How a tenant, a user or a document id stands in a row: as it is, or as `~` and a digest if it needs another alphabet."""
    if _PLAIN.fullmatch(value):
        return value
    return "~" + hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()


def render(template: Template, **parameters: str | int | tuple[str, ...]) -> str:
    """`template` with its parameters; strings as `stored_id` gives them."""
    return template.substitute({name: _literal(value) for name, value in parameters.items()})


def _literal(value: str | int | tuple[str, ...]) -> str:
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(_literal(item) for item in value) + "]"
    return f'"{stored_id(value)}"'


def visible(among: Among) -> str:
    """The filter of a search among these rows."""
    now = int(time.time() * 1000) // NOW_STEP_MS * NOW_STEP_MS
    if not among.documents:
        return render(MEMORIES, tenant=among.tenant, subject=among.subject, now=now)
    if among.document_ids:
        return render(SOME_DOCUMENTS, tenant=among.tenant, ids=among.document_ids, now=now)
    return render(DOCUMENTS, tenant=among.tenant, now=now)

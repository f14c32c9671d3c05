"""What of an API is taken away or asked for anew between two of its documents: each such change is a line that names the place.

openapi_changes(before, after)     # OpenAPI 3.1
events_changes(before, after)      # the JSON Schema of the native events

A request may be widened and an answer may tell more; the other way round breaks somebody. So schemas are compared by who sends them:
of a request everything that was valid must stay valid, and in an answer everything that was told must be told in the same form.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

Sender = Literal["client", "server"]
Schema = Mapping[str, Any]
# Of a request: a bound that is raised, or lowered, leaves out what was valid.
_LOWEST = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_MOST = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_METHODS = ("get", "put", "post", "delete", "patch", "head", "options", "trace")


def openapi_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Lines for what clients of `before` may miss in `after`; none where all of them can go on."""
    return list(_Documents(before, after).paths())


def events_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The same for events: of the envelope, of types, and of the data of each type."""
    documents = _Documents(before, after)
    found = [
        f"events: `{key}` is {after.get(key)!r}, and was {before[key]!r}" for key in ("$id", "$schema") if after.get(key) != before[key]
    ]
    found += documents.schemas(before, after, "event", "server")
    old, new = _data_of(before), _data_of(after)
    for kind, schema in old.items():
        if kind not in new:
            found.append(f"event {kind}: the type is gone")
        else:
            found += documents.schemas(schema, new[kind], f"event {kind}: data", "server")
    return found


def _data_of(schema: Schema) -> dict[str, Schema]:
    return {rule["if"]["properties"]["type"]["const"]: rule["then"]["properties"]["data"] for rule in schema["allOf"]}


class _Documents:
    """Two documents, each with what its references lead to."""

    def __init__(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        self._before, self._after = before, after
        self._open: list[tuple[int, int, str]] = []
        self._alike: set[tuple[int, int, str]] = set()

    def paths(self) -> Iterator[str]:
        """Lines of all routes."""
        for path, operations in self._before.get("paths", {}).items():
            now = self._after.get("paths", {}).get(path)
            if now is None:
                yield f"{path}: the route is gone"
                continue
            for method in _METHODS:
                if method in operations:
                    where = f"{method.upper()} {path}"
                    if method not in now:
                        yield f"{where}: the method is gone"
                    else:
                        yield from self._operation(operations[method], now[method], where)

    def _operation(self, old: Mapping[str, Any], new: Mapping[str, Any], where: str) -> Iterator[str]:
        if new.get("security") and not old.get("security"):
            yield f"{where}: needs a key now"
        yield from self._parameters(old, new, where)
        yield from self._body(self._seen(old.get("requestBody"), new.get("requestBody")), where)
        for status, answer in old.get("responses", {}).items():
            if status not in new.get("responses", {}):
                yield f"{where}: the answer {status} is gone"
                continue
            before, now = self._seen(answer, new["responses"][status])
            for name in before.get("headers", {}):
                if name not in now.get("headers", {}):
                    yield f"{where}: {status}: the header {name} is gone"
            yield from self._contents(before, now, f"{where}: {status}", "server")

    def _parameters(self, old: Mapping[str, Any], new: Mapping[str, Any], where: str) -> Iterator[str]:
        known = {(one["in"], one["name"]): one for one in (self._seen(p, {})[0] for p in old.get("parameters", ()))}
        now = {(one["in"], one["name"]): one for one in (self._seen({}, p)[1] for p in new.get("parameters", ()))}
        for (place, name), one in known.items():
            at = f"{where}: {place} parameter {name}"
            if (place, name) not in now:
                yield f"{at} is gone"
                continue
            if now[place, name].get("required") and not one.get("required"):
                yield f"{at} is required now"
            yield from self.schemas(one.get("schema", {}), now[place, name].get("schema", {}), at, "client")
        for place, name in now.keys() - known.keys():
            if now[place, name].get("required"):
                yield f"{where}: {place} parameter {name} is new and required"

    def _body(self, bodies: tuple[Mapping[str, Any], Mapping[str, Any]], where: str) -> Iterator[str]:
        old, new = bodies
        if new.get("required") and not old.get("required"):
            yield f"{where}: a body is required now"
        if old and not new:
            yield f"{where}: takes no body any more"
        elif old:
            yield from self._contents(old, new, f"{where}: body", "client")

    def _contents(self, old: Mapping[str, Any], new: Mapping[str, Any], where: str, sender: Sender) -> Iterator[str]:
        for media, content in old.get("content", {}).items():
            if media not in new.get("content", {}):
                yield f"{where}: {media} is gone"
            else:
                yield from self.schemas(content.get("schema", {}), new["content"][media].get("schema", {}), where, sender)

    def schemas(self, old: Schema, new: Schema, where: str, sender: Sender) -> list[str]:
        """Lines of what changed from one schema to the other, for who reads what `sender` sends, or is what reads it."""
        old, new = self._seen(old, new)
        pair = (id(old), id(new), sender)
        if pair in self._open or pair in self._alike:
            # A shape that contains itself is compared once, and one that many routes have is not looked at again.
            return []
        self._open.append(pair)
        try:
            found = self._compared(old, new, where, sender)
        finally:
            self._open.remove(pair)
        if not found and old and new:
            # Both are parts of the documents, which outlive this; an empty one may be made for the moment.
            self._alike.add(pair)
        return found

    def _compared(self, old: Schema, new: Schema, where: str, sender: Sender) -> list[str]:
        forms, now = _forms(old), _forms(new)
        if len(forms) == len(now) == 1:
            return self._form(forms[0], now[0], where, sender)
        found: list[str] = []
        for form in forms:
            if sender == "server" and form.get("type") == "null":
                # What is always told now breaks nobody.
                continue
            results = [self._form(form, other, where, sender) for other in now]
            if [] not in results:
                alike = [r for r, other in zip(results, now, strict=True) if _kind(form) == _kind(other)]
                found += alike[0] if len(alike) == 1 else [f"{where}: {_named(form)} is gone"]
        if sender == "server" and not found:
            # What comes beside it is something that nobody was told to expect.
            for other in now:
                if all(_kind(other) != _kind(form) for form in forms):
                    found.append(f"{where}: may be {_named(other)} now")
        return found

    def _form(self, old: Schema, new: Schema, where: str, sender: Sender) -> list[str]:
        """The same for two that are one form each."""
        old, new = self._seen(old, new)
        if len(_forms(old)) > 1 or len(_forms(new)) > 1:
            return self.schemas(old, new, where, sender)
        was, now = _type(old), _type(new)
        if not _fits(was, now, sender):
            return [f"{where}: is {now or 'anything'} now, and was {was or 'anything'}"]
        if sender == "client" and _values(old) is None and (values := _values(new)) is not None:
            return [f"{where}: only takes {', '.join(map(repr, values))} now"]
        found = [f"{where}: the value {value!r} is gone" for value in _gone(old, new)]
        if sender == "client":
            found += _narrowed(old, new, where)
        elif old.get("format") not in (None, new.get("format")):
            found.append(f"{where}: is of the format {new.get('format')} now, and was {old['format']}")
        return found + self._members(old, new, where, sender)

    def _members(self, old: Schema, new: Schema, where: str, sender: Sender) -> list[str]:
        found: list[str] = []
        for name, schema in old.get("properties", {}).items():
            if name not in new.get("properties", {}):
                found.append(f"{where}: the member {name} is gone")
            else:
                found += self.schemas(schema, new["properties"][name], f"{where}.{name}", sender)
        needed, needs = set(old.get("required", ())), set(new.get("required", ()))
        if sender == "client":
            found += [f"{where}: the member {name} is required now" for name in sorted(needs - needed)]
            if new.get("additionalProperties") is False and old.get("additionalProperties") is not False and _is_object(old):
                found.append(f"{where}: other members are refused now")
        else:
            found += [
                f"{where}: the member {name} may be absent now" for name in sorted(needed - needs) if name in new.get("properties", {})
            ]
        for keyword, label in (("items", "[]"), ("additionalProperties", ".*"), ("contentSchema", " as JSON")):
            before, now = old.get(keyword), new.get(keyword)
            if isinstance(before, Mapping) and isinstance(now, Mapping):
                found += self.schemas(before, now, where + label, sender)
            elif isinstance(before, Mapping) and sender == "server":
                found.append(f"{where}{label}: may be anything now")
            elif isinstance(now, Mapping) and now and sender == "client":
                found.append(f"{where}{label}: may not be anything any more")
        return found

    def _seen(self, old: Any, new: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        return _resolved(old or {}, self._before), _resolved(new or {}, self._after)


def _resolved(schema: Any, document: Mapping[str, Any]) -> Any:
    while "$ref" in schema:
        found: Any = document
        for step in schema["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        schema = found
    return schema


def _forms(schema: Schema) -> Sequence[Schema]:
    """A schema as the list of those of which a value must fit one."""
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            return [form for option in schema[keyword] for form in _forms(option)]
    if isinstance(schema.get("type"), list):
        return [{**schema, "type": kind} for kind in schema["type"]]
    return [schema]


def _values(schema: Schema) -> Sequence[Any] | None:
    return [schema["const"]] if "const" in schema else schema.get("enum")


def _gone(old: Schema, new: Schema) -> list[Any]:
    values = _values(new)
    return [] if values is None else [value for value in _values(old) or () if value not in values]


def _type(schema: Schema) -> str | None:
    """The type of a form, also where only its values say it."""
    values = _values(schema)
    if "type" in schema or not values:
        return schema.get("type")
    return "string" if all(isinstance(value, str) for value in values) else None


def _kind(schema: Schema) -> str | None:
    """What tells one form of several from the others: the name of its shape, else its type."""
    return schema["$ref"] if "$ref" in schema else _type(schema)


def _named(schema: Schema) -> str:
    return (_kind(schema) or "anything").rpartition("/")[2]


def _fits(was: str | None, now: str | None, sender: Sender) -> bool:
    """Whether the reader of a value can go on: a request may take more than before, an answer may tell what was told before."""
    if sender == "client":
        return now in (None, was) or (was, now) == ("integer", "number")
    return was in (None, now) or (was, now) == ("number", "integer")


def _narrowed(old: Schema, new: Schema, where: str) -> list[str]:
    found = [f"{where}: {word} is {new[word]} now" for word in _LOWEST if word in new and (word not in old or new[word] > old[word])]
    found += [f"{where}: {word} is {new[word]} now" for word in _MOST if word in new and (word not in old or new[word] < old[word])]
    return found + [f"{where}: {word} is {new[word]} now" for word in ("pattern", "format") if word in new and new[word] != old.get(word)]


def _is_object(schema: Schema) -> bool:
    return schema.get("type") == "object" or "properties" in schema

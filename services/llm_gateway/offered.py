"""The names that a request may use."""

from services.llm_gateway.registry import Group, Registry


def offered(registry: Registry) -> dict[str, Group]:
    """Every name with the group behind it: `auto` models, which stand for their balanced one, groups, and aliases."""
    autos = {name: registry.groups[route.balanced] for name, route in registry.autos.items()}
    aliases = {alias: group for alias in registry.aliases if (group := registry.find(alias)) is not None}
    return {**autos, **registry.groups, **aliases}

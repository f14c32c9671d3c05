"""Product configuration: YAML files, validated whole, watched and reloaded.

tools = ConfigFile(settings.config_dir / "tools.yaml", parse_tools)   # raises StartRefused with every problem
tools.current                                                         # the last good content
await tools.watch()                                                   # forever: reloads within 2 s
"""

from services.common.config._file import ConfigFile, ConfigProblem

__all__ = ["ConfigFile", "ConfigProblem"]

"""Which models answer: the simulator, a real provider when its key is set, or a LiteLLM-shaped file of the user's."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from services.cli.failure import CommandFailure
from services.cli.up.workspace import Workspace, write_private

DEFAULT_CONFIG = Path(__file__).resolve().parents[3] / "k8s/environments/local/config"
OPENAI_BASE = "https://api.openai.com/v1"
# What the local agents.yaml and the memory service ask for.
CHAT_MODEL, EMBEDDING_MODEL = "assistant-model", "embedding-default"
# Price tables that lie beside a models file belong to it.
PRICE_TABLES = ("prices.yaml", "prices.json")
SIMULATOR_REFERENCE = "BULKHEAD_SIMULATOR_URL"
LOCAL_EMBEDDING: Mapping[str, Any] = {
    "model_name": EMBEDDING_MODEL,
    "litellm_params": {"model": "wordllama/l2_supercat_256"},
    "model_info": {"mode": "embedding"},
}
# US dollars a token, as the provider lists them for its own endpoint.
OPENAI_DEFAULTS = (("gpt-4.1-mini", 0.0000004, 0.0000016), ("gpt-4.1-nano", 0.0000001, 0.0000004))


@dataclass(frozen=True, slots=True)
class Models:
    """`source` is what the banner says; `simulator` whether it must be started; `generated_from` a file to follow."""

    config_dir: Path
    source: str
    simulator: bool
    generated_from: Path | None = None


def choose_models(workspace: Workspace, environ: Mapping[str, str], file: Path | None, config_dir: Path = DEFAULT_CONFIG) -> Models:
    """Decides, and writes a configuration folder of its own when the models are not those of `config_dir`.

    Raises CommandFailure when `file` cannot be read.
    """
    if file is not None:
        return _from_file(workspace, file.absolute(), config_dir)
    if environ.get("OPENAI_API_KEY"):
        folder = _linked_config(workspace, config_dir)
        write_private(folder / "models.yaml", _dump(openai_models(environ)))
        base = environ.get("OPENAI_BASE_URL") or OPENAI_BASE
        model = environ.get("OPENAI_MODEL") or OPENAI_DEFAULTS[0][0]
        return Models(folder, f"{model} at {base} (OPENAI_API_KEY is set; OPENAI_MODEL picks another model)", simulator=False)
    source = "SIMULATOR, no real model: answers are built by rules (set OPENAI_API_KEY for a real one)"
    return Models(config_dir, source, simulator=True)


def openai_models(environ: Mapping[str, str]) -> dict[str, Any]:
    """A models file over OPENAI_API_KEY, by reference; OPENAI_BASE_URL and OPENAI_MODEL are taken when set."""
    params: dict[str, Any] = {"api_key": "os.environ/OPENAI_API_KEY"}
    if environ.get("OPENAI_BASE_URL"):
        params["api_base"] = "os.environ/OPENAI_BASE_URL"
    chosen = environ.get("OPENAI_MODEL")
    models = [(chosen, None, None)] if chosen else list(OPENAI_DEFAULTS)
    entries: list[dict[str, Any]] = []
    for suffix, (model, price_in, price_out) in zip(("", "-backup"), models, strict=False):
        info: dict[str, Any] = {"mode": "chat"}
        # Prices hold for the provider's own endpoint only.
        if price_in is not None and "api_base" not in params:
            info |= {"input_cost_per_token": price_in, "output_cost_per_token": price_out}
        entries.append({"model_name": CHAT_MODEL + suffix, "litellm_params": {"model": f"openai/{model}", **params}, "model_info": info})
    backup = f"{CHAT_MODEL}-backup"
    router: dict[str, Any] = {"fallbacks": [{CHAT_MODEL: [backup]}]} if len(entries) > 1 else {"model_group_alias": {backup: CHAT_MODEL}}
    return {"model_list": [*entries, dict(LOCAL_EMBEDDING)], "router_settings": router}


def completed(content: Any) -> tuple[dict[str, Any], list[str]] | None:
    """A models file with the names that agents and memory ask for, and what was added; None when nothing has to be.

    A file that is not in shape is left as it is: the LLM gateway lists its problems.
    """
    if not isinstance(content, dict) or not isinstance(content.get("model_list"), list):
        return None
    entries = [e for e in content["model_list"] if isinstance(e, dict) and isinstance(e.get("model_name"), str)]
    router = content.get("router_settings") or {}
    if not entries or not isinstance(router, dict):
        return None
    aliases = router.get("model_group_alias") or {}
    names = {e["model_name"] for e in entries} | set(aliases)
    chat = [e["model_name"] for e in entries if _chats(e)]
    added = []
    made = {**content, "model_list": list(content["model_list"])}
    if CHAT_MODEL not in names and chat:
        made["router_settings"] = {**router, "model_group_alias": {**aliases, CHAT_MODEL: chat[0]}}
        added.append(f"{CHAT_MODEL} is {chat[0]}")
    if EMBEDDING_MODEL not in names:
        made["model_list"].append(dict(LOCAL_EMBEDDING))
        added.append(f"{EMBEDDING_MODEL} is the local one")
    return (made, added) if added else None


def chat_model(models: Models) -> str:
    """A name that chat requests may use with the models in force, empty where there is none."""
    try:
        content = yaml.safe_load((models.config_dir / "models.yaml").read_text(encoding="utf-8"))
        names = [e["model_name"] for e in content["model_list"] if _chats(e)]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, LookupError, TypeError, AttributeError):
        return ""
    return CHAT_MODEL if CHAT_MODEL in names else next(iter(names), "")


def _chats(entry: Mapping[str, Any]) -> bool:
    """Whether an entry is a chat model by its own name: a wildcard is none."""
    return "*" not in entry["model_name"] and (entry.get("model_info") or {}).get("mode") not in ("embedding", "rerank")


def _from_file(workspace: Workspace, file: Path, config_dir: Path) -> Models:
    if not file.is_file():
        raise CommandFailure(f"--models {file}: no such file")
    folder = _linked_config(workspace, config_dir)
    for name in PRICE_TABLES:
        # Where there is none yet, the link leads nowhere until somebody writes one.
        if (beside := file.with_name(name)).is_file() or not (folder / name).exists():
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(beside)
    target = folder / "models.yaml"
    text, added = render(file)
    source = f"{file}" + (f" ({'; '.join(added)})" if added else "")
    simulator = SIMULATOR_REFERENCE in file.read_text(encoding="utf-8", errors="replace")
    if simulator:
        source += ", served by the SIMULATOR, no real model"
    if text is None:
        target.unlink(missing_ok=True)
        target.symlink_to(file)
        return Models(folder, source, simulator)
    write_private(target, text)
    return Models(folder, source, simulator, generated_from=file)


def render(file: Path) -> tuple[str | None, list[str]]:
    """The text to use instead of `file` and what it adds; None when the file serves as it is."""
    try:
        made = completed(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None, []
    return (_dump(made[0]), made[1]) if made else (None, [])


def follow(models: Models) -> None:
    """Brings the generated file up to date with the one it was made from."""
    if models.generated_from is None:
        return
    target = models.config_dir / "models.yaml"
    text = render(models.generated_from)[0]
    if text is None:
        # As it is, with its problems: the LLM gateway refuses it, says why and keeps the last good one.
        try:
            text = models.generated_from.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return
    if text != target.read_text(encoding="utf-8"):
        write_private(target, text)


def _linked_config(workspace: Workspace, config_dir: Path) -> Path:
    """A configuration folder of our own: links to all of `config_dir` but models.yaml."""
    folder = workspace.config
    folder.mkdir(mode=0o700, exist_ok=True)
    for old in folder.iterdir():
        if old.is_symlink() or old.name == "models.yaml":
            old.unlink()
    for entry in config_dir.iterdir():
        if entry.name != "models.yaml" and not (folder / entry.name).exists():
            (folder / entry.name).symlink_to(entry)
    return folder


def _dump(content: dict[str, Any]) -> str:
    return "# Written by `bulkhead up`; changes here are lost.\n" + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)

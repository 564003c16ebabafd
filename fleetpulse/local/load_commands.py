"""Where ``fleetpulse simulate`` and ``load`` send to when they are not told: the running ``fleetpulse up``."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from fleetpulse.local.deployment import MODEL
from fleetpulse.local.load_request import Target
from fleetpulse.local.recording import recording
from fleetpulse.local.state_file import running_state
from fleetpulse.settings import LocalSettings, SettingsError, StreamSettings, load

KEY_VARIABLE = "OPENAI_API_KEY"


def simulation_stream() -> StreamSettings:
    """The broker that the settings name, else that of the running stack, else the default one."""
    settings = load(StreamSettings)
    if "bootstrap" in settings.model_fields_set:
        return settings
    return load(StreamSettings, bootstrap=running_state(load(LocalSettings).data_dir).get("kafka_bootstrap"))


def target(url: str | None, model: str | None, prompt_words: int, most_tokens: int) -> Target:
    """The proxy, a key and a model for it. Raises SettingsError where nothing says which."""
    for name, value in (("--prompt-words", prompt_words), ("--max-tokens", most_tokens)):
        if not 1 <= value <= 1_000_000:
            raise SettingsError(f"{name}: {value} is not between 1 and 1000000")
    if url is None:
        local = load(LocalSettings)
        state = running_state(local.data_dir)
        if not state:
            raise SettingsError(f"no fleetpulse up runs in {local.data_dir}: start one, or say --url")
        return Target(state["proxy_url"], state["inference_key"], model or MODEL, prompt_words, most_tokens)
    key = os.environ.get(KEY_VARIABLE)
    if key is None or model is None:
        raise SettingsError(f"--url needs --model, and the proxy's key in {KEY_VARIABLE}")
    return Target(url.rstrip("/"), key, model, prompt_words, most_tokens)


@contextlib.contextmanager
def recorded(folder: Path | None, name: str) -> Iterator[None]:
    """Record the running stack into ``folder``, if there is one. Raises SettingsError when no stack runs."""
    if folder is None:
        yield
        return
    local = load(LocalSettings)
    state = running_state(local.data_dir)
    if not state:
        raise SettingsError(f"no fleetpulse up runs in {local.data_dir}: --record records one")
    with recording(folder, name, state):
        yield

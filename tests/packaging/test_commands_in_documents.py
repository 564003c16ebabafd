"""Every command in the documents: what can be tried without changing the machine is tried, the rest is read.

- ``fleetpulse …``: the arguments are parsed by the command itself; nothing is run.
- ``make TARGET`` and ``python -m MODULE``: target and module exist.
- ``pip install``, ``uv tool install``: what is installed of ours is there, with these extras.
- Prometheus, Alertmanager and their tools: their own help has the options.
- ``docker compose``, ``helm``, ``kubectl``, ``curl`` and other common programs, and scripts of ours:
  the files of the checkout that they name exist. What the stack, the chart and the units do is tested beside this file,
  and so are requests by ``curl``.

A line of a block that begins with none of these is taken for output.
"""

import importlib.util
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleetpulse.command import _parser

MONITORING = ("prometheus", "promtool", "alertmanager", "amtool")

# Common programs: their arguments are for the reader, but files of the checkout that they name must exist.
COMMON = {
    "apt-get", "cd", "cp", "curl", "dbmate", "docker", "export", "git", "helm", "install", "journalctl", "kubectl",
    "loginctl", "npm", "pip", "prometheus", "promtool", "amtool", "psql", "ssh", "systemctl", "systemd-run", "uv",
    "kafka-topics.sh", "openssl", "nvidia-smi", "unset", "setsid", "echo", "printf", "sed", "rm", "tail",
    "alertmanager",
}  # fmt: skip
RUNNERS = {"setsid", "exec", "nohup", "sudo", "time"}
PYTHONS = re.compile(r"(?:\S*/)?python(?:3(?:\.\d+)?)?$")
FLEETPULSE = re.compile(r"(?:\S*/)?fleetpulse$")
# Words that stand for the reader's own.
PLACEHOLDERS = {
    "N": "2", "S": "2", "SECONDS": "2", "PORT": "8100", "DIR": "folder", "FOLDER": "folder", "FILE": "file",
    "INSTANCE": "i-1",
}  # fmt: skip
OURS = re.compile(r"(?<![\w./-])(?:alerts|bench|compose|dashboards|deploy|docs|fleetpulse|sql|tests)/[\w./-]*[\w*]")
# Made by a command before, or by the reader.
MADE = re.compile(r"^compose/secrets/|^compose/prometheus/agents/|^alerts/agents/|^bench/results/|^docs/images/")
INLINE = re.compile(
    r"`((?:[A-Z_]+=\S* )*(?:fleetpulse|make|helm|docker compose|promtool|amtool|pip install|python3?) [^`]+)`"
)
SETTINGS = re.compile(r"^(?:\$ )?(?:[A-Z_]+=\S*\s+)*")
SHOWN = re.compile(r"(?:\S*/)?([a-z][\w.-]*)(?= |$)")
# $(…) with what is nested in it.
SUBSTITUTION = re.compile(r"\$\((?:[^()]|\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\))*\)")
# What pip and uv are told to install: where it lies or what it is called, and its extras.
INSTALLED = re.compile(r"(?<=')(?P<what>\.[\w./-]*|fleetpulse)\[(?P<extras>[\w,]+)\](?=')")


def blocks(text: str) -> Iterator[str]:
    """Indented blocks, and fenced ones that say that they are for a shell."""
    yield from re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    plain = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for indented in re.findall(r"(?:(?<=\n\n)|\A)((?:(?: {4}|\t).*\n|\n(?= {4}))+)", plain):
        yield re.sub(r"^ {4,8}", "", indented, flags=re.MULTILINE)


def commands(text: str) -> Iterator[str]:
    """Single commands, with continued lines joined."""
    for block in blocks(text):
        joined = re.sub(r"\\\n\s*", " ", block)
        for line in joined.splitlines():
            shown = line.removeprefix("$ ").strip()
            if is_command(shown):
                yield shown
    yield from INLINE.findall(re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def is_command(line: str) -> bool:
    """Whether a line of a block begins as a command does, rather than as output, JSON, YAML or SQL."""
    if line.startswith(("compose/", "./")):
        return True
    line = SETTINGS.sub("", SUBSTITUTION.sub("VALUE", line))
    found = SHOWN.match(line)
    if found is None:
        return False
    name = found[1]
    known = name in COMMON | RUNNERS or name in ("fleetpulse", "make") or PYTHONS.match(name) is not None
    return known and not re.match(r"^\S+(?: is | .* is up$|:)", line)


def words(command: str) -> list[str]:
    """Its words up to a pipe or redirection, without settings before it and programs that only run others."""
    # What may be left out is tried, too; of alternatives the first.
    plain = re.sub(r" \[(--[^\]|]*?)(?: ?\|[^\]]*)?\]", r" \1", command)
    lexer = shlex.shlex(SUBSTITUTION.sub("VALUE", plain), posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    try:
        read = list(lexer)
    except ValueError:  # a quotation that goes on in the next line
        read = command.split()
    found: list[str] = []
    for word in read:
        if set(word) <= set("|&;<>"):
            break
        found.append(word)
    while found and (re.match(r"^[A-Z_]+=", found[0]) or found[0] in RUNNERS):
        found.pop(0)
    return found


def cases(root: Path) -> list[tuple[str, str]]:
    top = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")
    listed = [*(root / name for name in top), *sorted((root / "docs").rglob("*.md"))]
    return [
        (path.relative_to(root).as_posix(), command)
        for path in listed
        for command in dict.fromkeys(commands(path.read_text()))
    ]


CASES = cases(Path(__file__).parents[2])


def wrong(root: Path, command: str) -> str | None:
    """What is wrong with a command, in words."""
    given = words(command)
    if not given:
        return None
    missing = [
        path for path in OURS.findall(command) if not MADE.match(path) and "…" not in path and not exists(root, path)
    ]
    if missing:
        return f"there is no {', '.join(missing)}"
    if fault := uninstallable(root, command):
        return fault
    program, arguments = given[0], given[1:]
    if FLEETPULSE.match(program):
        return unparsed(arguments)
    if program == "make":
        targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE))
        asked = {word for word in arguments if "=" not in word}
        return f"make has no {asked - targets}" if asked - targets else None
    if PYTHONS.match(program):
        return unfound_module(arguments)
    if program.startswith(("compose/", "./")):
        return None
    return None if Path(program).name in COMMON else f"{program} is not a program that documents use"


def exists(root: Path, path: str) -> bool:
    return bool(list(root.glob(path))) if "*" in path else (root / path).exists()


def unparsed(arguments: list[str]) -> str | None:
    """Whether the command itself understands the arguments."""
    tried = [PLACEHOLDERS.get(word, word) for word in arguments if word not in ("…", "...")]
    if not tried or tried[0].startswith("--"):
        return None
    try:
        _parser().parse_args(tried)
    except SystemExit as error:
        # A command that is only named, without what it needs, is the document's way to speak of it.
        return None if error.code == 0 or len(tried) == 1 else f"fleetpulse does not take {shlex.join(tried)}"
    return None


def uninstallable(root: Path, command: str) -> str | None:
    """What of ours a command would install, and cannot."""
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for found in INSTALLED.finditer(command):
        if found["what"].startswith(".") and not (root / found["what"] / "pyproject.toml").exists():
            return f"nothing can be installed from {found['what']}"
        if unknown := set(found["extras"].split(",")) - set(extras):
            return f"there is no extra {', '.join(sorted(unknown))}"
    return None


def unfound_module(arguments: list[str]) -> str | None:
    if "-m" not in arguments:
        return None
    module = arguments[arguments.index("-m") + 1]
    found = importlib.util.find_spec(module.partition(".")[0]) or (Path(__file__).parents[2] / module).is_dir()
    if not found:
        return f"there is no module {module}"
    if found is not True and "." in module and importlib.util.find_spec(module) is None:
        return f"there is no module {module}"
    return None


def test_commands_are_found_in_the_documents() -> None:
    found = {command for _, command in CASES}
    assert "make run" in found
    assert "compose/secrets.sh" in found
    assert any(command.endswith("setsid fleetpulse agent >agent.log 2>&1 &") for command in found)
    assert any("$(python " in command and command.endswith("simulate --agents 100") for command in found)
    assert any(command.startswith("helm install") for command in found)
    assert len(CASES) > 60


@pytest.mark.parametrize("page", sorted({page for page, _ in CASES}))
def test_every_command_of_a_page_can_be_given(page: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faults = [f"{command}: {fault}" for where, command in CASES if where == page and (fault := wrong(root, command))]
    capsys.readouterr()
    assert faults == []


@pytest.mark.parametrize(
    "command",
    [
        "fleetpulse deploy --provider mock --zone here --kind x",
        "fleetpulse destroy --all",
        "make everything",
        "compose/everything.sh",
        "python -m fleetpulse.local.nothing",
        "docker compose --file compose/other.yaml up",
        "pip install './fleetpulse[agent]'",
        "uv tool install '.[everything]'",
        "frobnicate --now",
    ],
)
def test_a_command_that_does_not_exist_is_noticed(command: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wrong(root, command) is not None
    capsys.readouterr()


@pytest.mark.prometheus
@pytest.mark.parametrize("program", MONITORING)
def test_what_prometheus_and_its_company_are_told_is_in_their_help(program: str) -> None:
    given = [asked for _, command in CASES if (asked := words(command)) and asked[0] == program]
    assert given
    for arguments in given:
        # Debian's name of it.
        path = shutil.which(program) or f"prometheus-{program}"
        what = [word for word in arguments[1:] if re.fullmatch(r"[a-z]+", word)]
        told = subprocess.run([path, *what, "--help"], capture_output=True, text=True, check=True)
        options = {word.partition("=")[0] for word in arguments if word.startswith("--")}
        assert options - set(re.findall(r"--[\w.-]+", told.stdout + told.stderr)) == set(), arguments

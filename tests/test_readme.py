"""The commands of the README run as printed.

A fenced block says in its first line what becomes of it: ```bash run and ```python run are executed
in order in one shell, ```bash serve is started in the background and must become ready, and a block
without such a word is shown only. The demo is walked with --quick, so what the README finds in
`demo-run/` lies in `demo-run/quick/` and its run is `demo-quick.yaml`. Every bash block must at
least parse, and what it asks of `rematch-ray` must be accepted by the verb's own parser.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MINUTES = 60

WAIT_UNTIL_READY = """
for attempt in $(seq 120); do
  curl -sf -o /dev/null localhost:8000/readyz && break
  kill -0 $server || exit 1
  sleep 1
done
curl -sf -o /dev/null localhost:8000/readyz
"""


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, what is done with it ("" for nothing) and its text."""

    language: str
    action: str
    text: str


def blocks(markdown: str) -> list[Block]:
    """Return the fenced blocks that name a language, in order."""
    found = re.findall(r"^```(\w+) ?(\w*)\n(.*?)^```$", markdown, re.MULTILINE | re.DOTALL)
    return [Block(*groups) for groups in found]


def script(parts: list[Block]) -> str:
    """Return one bash program that executes the blocks in order and fails with the first."""
    lines = ["set -exo pipefail"]
    for part in parts:
        if part.action == "run" and part.language == "python":
            lines.append(f"python - <<'END_OF_PYTHON'\n{part.text}END_OF_PYTHON")
        elif part.action == "run":
            lines.append(part.text)
        elif part.action == "serve":
            lines.append(f"{{\n{part.text}}} &\nserver=$!\n{WAIT_UNTIL_READY}")
    return "\n".join(lines)


def commands(parts: list[Block]) -> Iterator[list[str]]:
    """Yield the arguments of every `rematch-ray` call in the bash blocks."""
    for part in parts:
        for line in part.text.replace("\\\n", " ").splitlines():
            if part.language == "bash" and line.startswith("rematch-ray "):
                yield shlex.split(line, comments=True)[1:]


def quick(program: str) -> str:
    """Return the program on what `rematch-ray demo --quick` leaves."""
    return program.replace("demo-run/", "demo-run/quick/").replace("demo.yaml", "demo-quick.yaml")


README = blocks((ROOT / "README.md").read_text())


def test_blocks_are_told_apart_by_their_first_line() -> None:
    text = "```bash run\na\n```\nwords\n```bash\nb\n```\n```bash serve\nc\n```\n```\ntree\n```\n"
    assert blocks(text) == [
        Block("bash", "run", "a\n"),
        Block("bash", "", "b\n"),
        Block("bash", "serve", "c\n"),
    ]


def test_the_readme_has_something_to_run_and_knows_no_other_action() -> None:
    assert {block.action for block in README} == {"", "run", "serve"}


def test_every_bash_block_parses() -> None:
    text = "\n".join(block.text for block in README if block.language == "bash")
    for program in (text, script(README)):
        done = subprocess.run(["bash", "-n"], input=program, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", commands(README), ids=" ".join)
def test_every_printed_command_is_accepted_by_its_parser(arguments: list[str]) -> None:
    from rematch_ray.cli import VERBS, verb_parser

    verb, *rest = arguments
    command = import_module(f"rematch_ray.commands.{VERBS[verb].module}")
    verb_parser(verb, command).parse_args(rest)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(MINUTES * 60 + 60)
def test_the_readme_runs_as_printed(tmp_path: Path) -> None:
    if subprocess.run(["make", "-q", ".venv/.installed"], cwd=ROOT).returncode != 0:
        pytest.skip("the environment was not made by make, or is older than its requirements")
    copy_tracked_files(tmp_path)
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    log = tmp_path / "readme.log"  # not a pipe: the server holds it open after the shell has ended
    with log.open("w") as output:
        shell = subprocess.Popen(
            ["bash", "-c", quick(script(README))],
            cwd=tmp_path,
            env={**os.environ, "DEMO_FLAGS": "--quick"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = shell.wait(timeout=MINUTES * 60)
        finally:  # the server of the README is meant to run on
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGTERM)
    assert code == 0, log.read_text()[-6000:]


def copy_tracked_files(target: Path) -> None:
    """Copy what git tracks, times included: make compares them with the environment's."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (source := ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)

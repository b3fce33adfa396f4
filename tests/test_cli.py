"""The command line: exit codes, one-line messages, JSON last, and a clean end on Ctrl-C."""

import argparse
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rematch_ray import cli
from rematch_ray.errors import UserError


@pytest.fixture(autouse=True)
def _leave_the_process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An interrupt ignores signals and closes Ray: here both belong to all tests."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(cli, "end_descendants", lambda close: None)
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replace the verb `demo` by a function of no arguments."""

    def install(function: Any) -> None:
        command = ModuleType("rematch_ray.commands.fake", "A verb made for a test.")
        command.add_arguments = lambda parser: None  # type: ignore[attr-defined]
        command.run = lambda options: function()  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "rematch_ray.commands.fake", command)
        monkeypatch.setitem(cli.VERBS, "demo", cli.Verb("a test", "fake"))

    return install


def raising(error: BaseException) -> Any:
    def fail() -> None:
        raise error

    return fail


def test_json_is_the_last_line_of_stdout_and_only_on_request(
    verb: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer() -> dict[str, Any]:
        print("noise of a library")
        return {"name": "ä", "value": 1.5}

    verb(answer)
    assert cli.main(["demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"name": "ä", "value": 1.5}
    assert cli.main(["demo"]) == 0
    assert capsys.readouterr().out == "noise of a library\n"


def test_a_users_mistake_is_one_line_and_exit_code_2(
    verb: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    verb(raising(UserError("no such\nfile")))
    assert cli.main(["demo"]) == 2
    assert capsys.readouterr().err == "rematch-ray: error: no such file\n"


def test_any_other_failure_is_exit_code_1_without_a_stack_trace(
    verb: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    verb(raising(RuntimeError("the disk is full")))
    assert cli.main(["demo"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("rematch-ray: failed: RuntimeError: the disk is full\n")
    assert "Traceback" not in error


@pytest.mark.parametrize("error", [UserError("wrong"), RuntimeError("broken")])
def test_the_debug_switch_shows_the_stack_trace(
    verb: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    monkeypatch.setenv("REMATCH_RAY_DEBUG", "1")
    verb(raising(error))
    assert cli.main(["demo"]) in (1, 2)
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_one_line_and_exit_code_130(
    verb: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    verb(raising(KeyboardInterrupt()))
    assert cli.main(["demo"]) == 130
    error = capsys.readouterr().err
    assert error.startswith("interrupted")
    assert error.count("\n") == 1


def test_sigterm_ends_like_an_interrupt(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def wait() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    verb(wait)
    assert cli.main(["demo"]) == 130


def test_leaving_as_rays_own_sigterm_handlers_do_is_an_interrupt(
    verb: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for code in (1, int(signal.SIGTERM)):
        verb(raising(SystemExit(code)))
        assert cli.main(["demo"]) == 130
        assert capsys.readouterr().err.startswith("interrupted")


def test_help_lists_every_verb(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, verb in cli.VERBS.items():
        [line] = [line for line in lines if line.startswith(f"  {name} ")]
        assert line.endswith(verb.claim)


@pytest.mark.parametrize("name", list(cli.VERBS))
def test_every_verb_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    assert f"usage: rematch-ray {name}" in capsys.readouterr().out


def test_help_of_train_documents_keys_of_the_configuration(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    for key in ("train.num_workers", "model.base", "data.sources", "storage"):
        assert key in out


@pytest.mark.parametrize("name", list(cli.VERBS))
def test_every_argument_says_what_it_is(name: str) -> None:
    command = importlib.import_module(f"rematch_ray.commands.{cli.VERBS[name].module}")
    parsers = [cli.verb_parser(name, command)]
    for parser in parsers:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
            else:
                assert action.help, f"{parser.prog}: {action.option_strings or action.dest}"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "<verb>"),
        (["searhc"], "invalid choice: 'searhc'"),
        (["search"], "--index"),
        (["search", "--index", "x", "a", "--top-k", "0"], "--top-k"),
        (["search", "--index", "x", "a", "--candidates", "few"], "--candidates"),
        (["search", "--index", "x", "a", "--budgett", "1x1"], "--budgett"),
        (["search", "--index", "x"], "nothing to search for"),
        (["search", "--index", "x", "a", "--filter", "{source"], "--filter"),
        (["search", "--index", "x", "a", "--filter", "[1]"], "--filter"),
        (["search", "--index", "/no/index", "a"], "/no/index"),
        (["search", "--index", "x", "--image", "/no/file.png"], "/no/file.png"),
        (["index", "info", "--index", "/no/index"], "/no/index"),
        (["index", "add", "--index", "/no/index", "--embeddings", "/no/shards"], "/no/shards"),
        (["index", "delete", "--index", "/no/index", "a"], "/no/index"),
        (["index", "delete", "--index", "x"], "no ids to delete"),
        (["index", "delete", "--index", "x", "--ids-from", "/no/ids"], "/no/ids"),
        (["index", "merge", "--index", "/no/index"], "/no/index"),
        (["index", "build", "--embeddings", "a", "--out", "b", "--shards", "0"], "--shards"),
        (["embed", "--model", "m", "--data", "d", "--out", "o", "--side", "left"], "--side"),
        (["train", "--config", "/no/config.yaml"], "/no/config.yaml"),
        (["serve", "--index", "/no/index"], "/no/index"),
        (["serve", "--index", "x", "--port", "http"], "--port"),
        (["serve", "--index", "x", "--media-root", "/no/root"], "'/no/root' does not exist"),
        (["search", "--index", "x", "a", "--out", "sheet.foo"], ".png, .jpg, .jpeg or .webp"),
        (["search", "--index", "x", "a", "--out", "/dev/null/a.png"], "/dev/null is a file"),
        (["doctor", "--index", "x", "--queries", "q", "--plot", "p.foo"], ".svg or .pdf"),
        (["pretrain-tiny", "--out", "/dev/null"], "/dev/null is a file"),
        (["embed", "--model", "m", "--data", "d", "--out", "o", "batch_rows=-1"], "batch_rows=-1"),
    ],
)
def test_a_mistake_in_the_arguments_is_one_line_that_names_it(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_port_in_use_is_refused_before_anything_starts() -> None:
    from rematch_ray.commands.serve import _check_port

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port}"):
            _check_port("127.0.0.1", port)
    _check_port("127.0.0.1", port)


def test_jobs_take_the_arguments_of_their_verb(
    monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    for program in sorted((repository / "jobs").glob("*.py")):
        source = program.read_text()
        if "from rematch_ray.cli import main as run_verb" not in source:
            continue
        spec = importlib.util.spec_from_file_location(f"jobs_{program.stem}", program)
        assert spec is not None
        assert spec.loader is not None
        job = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(job)
        seen: list[list[str]] = []
        monkeypatch.setattr(job, "run_verb", lambda argv, seen=seen: seen.append(argv) or 7)
        assert job.main(["--a", "b"]) == 7
        verb = program.stem.replace("_", "-")
        expected = ["index", "build"] if program.stem == "build_index" else [verb]
        assert seen == [[*expected, "--a", "b", "--json"]]


def test_overrides_may_stand_anywhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rematch_ray.commands import train

    seen: list[list[str]] = []
    monkeypatch.setattr(train, "run", lambda options: seen.append(options.overrides))
    for argv in (
        ["--config", "x", "a=1", "b=2", "--json"],
        ["a=1", "--json", "--config", "x", "b=2"],
    ):
        assert cli.main(["train", *argv]) == 0
    assert seen == [["a=1", "b=2"]] * 2


def run_verb(*argv: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rematch_ray", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,
    )


def test_the_module_runs_as_a_program() -> None:
    process = run_verb("--version")
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out.split()[0]) == (0, "rematch-ray")


def test_a_parser_error_goes_to_stderr_only(capsys: pytest.CaptureFixture[str]) -> None:
    from rematch_ray.commands.parser import OneLineParser

    parser = OneLineParser(prog="x")
    parser.add_argument("--n", type=int)
    with pytest.raises(SystemExit) as leaving:
        parser.parse_args(["--n", "a"])
    assert leaving.value.code == 2
    assert isinstance(parser, argparse.ArgumentParser)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("x: argument --n")

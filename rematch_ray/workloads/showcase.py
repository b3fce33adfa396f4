"""The demo's last step: a server in a process of its own, three questions over HTTP, a picture.

Talks to the server as any client would. It knows the demo's folders and nothing of models.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rematch_ray.data.readers.parquet import read_table
from rematch_ray.data.schema import items_from_table
from rematch_ray.evaluation.sheet import contact_sheet
from rematch_ray.index.hits import Hit, SearchResult

READY_SECONDS = 300.0
STOP_SECONDS = 30.0
TOP_K = 8
ASKED_PLACE = 44


@dataclass(frozen=True)
class Question:
    """A query of the demo.

    Args:
        text: what is asked.
        what: why it is asked, for people.
        source: the corpus that is searched.
        right: ids of the documents that answer it.
    """

    text: str
    what: str
    source: str
    right: frozenset[str]


# (corpus, part, why it is asked)
ASKED = (
    ("emoji", "composed-test", "an unseen combination of a seen emoji and a seen tone or gender"),
    ("emoji", "novel-test", "an emoji that neither pretraining nor training has seen"),
    ("scenes", "test", "a scene of an unseen family of attributes"),
)


def pick_questions(data: Path) -> list[Question]:
    """Take one query of each part in `ASKED`, always the same one."""
    questions = []
    for source, part, what in ASKED:
        folder = data / source
        queries = items_from_table(read_table(folder / f"queries-{part}.parquet", rows="items"))
        query = queries[ASKED_PLACE % len(queries)]
        qrels = pq.read_table(folder / f"qrels-{part}.parquet").to_pylist()
        right = {line["document_id"] for line in qrels if line["query_id"] == query.id}
        questions.append(Question(query.text, what, source, frozenset(right)))
    return questions


def ask_server(
    index: Path, media: Path, questions: Sequence[Question], *, log: Path
) -> list[dict[str, Any]]:
    """Start a server on the index, ask it every question, stop it.

    Args:
        index: index directory.
        media: root of the documents' pictures.
        questions: asked one after another.
        log: receives what the server prints.

    Returns:
        The server's answer to each question, `http_ms` added.

    Raises:
        RuntimeError: the server ended, or was not ready in time; names the log.
    """
    with _server(index, media, log) as url:
        return [_ask(f"{url}/v1/search", question) for question in questions]


def draw_sheet(
    answers: Sequence[dict[str, Any]], questions: Sequence[Question], media: Path, out: Path
) -> Path:
    """Draw the answers as a contact sheet, the right documents framed."""
    results = [
        SearchResult(
            hits=[Hit(hit["id"], hit["score"], hit["payload"]) for hit in answer["results"]],
            **{key: answer[key] for key in ("budget", "candidates", "stages", "scored", "live")},
            scores=answer["scores"],
            exact=answer["exact"],
            generation=answer["generation"],
        )
        for answer in answers
    ]
    return contact_sheet(
        results,
        out,
        title=[question.text for question in questions],
        media_root=media,
        highlight=[question.right for question in questions],
    )


@contextmanager
def _server(index: Path, media: Path, log: Path) -> Iterator[str]:
    port = _free_port()
    command = [sys.executable, "-m", "rematch_ray", "serve", "--index", str(index)]
    command += ["--port", str(port), "--media-root", str(media)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            # Ctrl-C is ours to pass on: the server must not race us to the end
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(process, url, log)
            yield url
        finally:
            _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            tail = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"the server ended ({' '.join(tail)}); see {log}")
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.5)
    raise RuntimeError(f"the server was not ready within {READY_SECONDS:.0f} s; see {log}")


def _ask(url: str, question: Question) -> dict[str, Any]:
    body = {"query": question.text, "top_k": TOP_K, "filter": {"source": question.source}}
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    started = time.perf_counter()
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
    return {**answer, "http_ms": (time.perf_counter() - started) * 1000}


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    # not SIGINT: children of a background shell ignore that one
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

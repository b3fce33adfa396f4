"""The service beside the searches that it makes, beside itself overloaded, and beside others.

One run on one machine, load generator included in its cores. Overhead: median added at one request
at a time, CPU, throughput beside an in-process loop of the same threads, at three budgets and where
a search takes 20 ms or more; variants of Ray Serve. Text queries beside encoding and searching in
one process. First searches of an index that is not in memory, read ahead and not. Overload: Poisson
arrivals at half to three times capacity, load controller on and off, and with it at what the floor
bears and beyond.
Peers: plain FastAPI over FAISS, Qdrant's and LanceDB's engines.

    python benchmarks/serving.py [--quick] [--folder DIR] [--parts overhead overload ...]
"""

from __future__ import annotations

import os

# before anything starts its threads; every process that is started takes it over
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["RAYON_NUM_THREADS"] = "1"

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arms.first_searches import first_searches_table, measure_first_searches
from arms.grpc_ingress import measure_grpc
from arms.overhead import (
    LONG_MS,
    Overhead,
    long_cases,
    measure_overhead,
    overhead_table,
    service_args,
    usual_cases,
)
from arms.overload import FACTORS, Overload, Setting, measure_overload, overload_table
from arms.peer_services import NAMES, measure_ours, measure_peer, peer_table
from arms.service import NotReadyError, Service, free_port
from arms.soak import answer_table, run_soak, soak_table, soaked_index
from arms.text_queries import measure_texts, text_table
from arms.variants import VARIANTS
from load.driver import LoadGenerator
from load.plot import plot_overload
from shapes.served_corpus import HEAVY, HEAVY_QUICK_DOCUMENTS, Served, heavy, larger, pages

from rematch_ray.evaluation.report import plain_table

PARTS = (
    "overhead",
    "variants",
    "grpc",
    "texts",
    "larger-texts",
    "first-searches",
    "overload",
    "text-overload",
    "peers",
    "soak",
)
# parts that ask for nothing but synthetic vectors
SYNTHETIC = {"larger-texts", "first-searches", "overload"}
QUICK_PARTS = ("overhead", "texts", "overload")
QUICK_FACTORS = (0.5, 1.5, 3.0)


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see the module's text."""
    options = _parser().parse_args(argv)
    # half an hour, and nothing is compared: only by name
    usual = tuple(part for part in PARTS if part != "soak")
    parts = options.parts or (QUICK_PARTS if options.quick else usual)
    hard = heavy(options.folder, HEAVY_QUICK_DOCUMENTS if options.quick else HEAVY.num_documents)
    # pages take an hour to embed at first: quick runs ask the synthetic vectors all
    alone = options.quick or set(parts) <= SYNTHETIC
    served = hard if alone else pages(options.folder, options.rows)
    result: dict[str, Any] = {"benchmark": "serving"}
    if {"overhead", "texts", "peers"} & set(parts):
        result |= _in_one_service(served, parts, options)
    if "variants" in parts:
        _variants(served, options)
    if "grpc" in parts:
        args = service_args(served, options.threads)
        port = free_port()
        environment = _environment("throughput", port)
        table = measure_grpc(
            served,
            usual_cases(),
            options.scratch,
            args,
            port,
            options.seconds,
            environment,
        )
        _print("gRPC in the place of HTTP", table)
    if "larger-texts" in parts:
        _larger_texts(options)
    if "first-searches" in parts:
        first = measure_first_searches(hard, rounds=1 if options.quick else options.rounds)
        _print("first searches, index not in memory", first_searches_table(first))
    if "overload" in parts:
        result |= overload_keys(_overload(hard, options))
    if "text-overload" in parts:
        _overload(served, options, as_text=True)
    if "soak" in parts:
        _soak(served, options)
    result["machine"] = f"{os.cpu_count()} cores, load generator among them"
    print(json.dumps(result))
    return 0


def _in_one_service(
    served: Served, parts: Sequence[str], options: argparse.Namespace
) -> dict[str, Any]:
    """All that needs the usual service once; peers follow when it has ended."""
    result: dict[str, Any] = {}
    measure = _measure(options)
    beside = []
    args = _args(served, options)
    port = free_port()
    environment = _environment(options.variant, port)
    with (
        Service.ours(args, port, environment=environment) as service,
        LoadGenerator(service.port) as generator,
    ):
        if "overhead" in parts:
            cases = [*usual_cases(), *long_cases(served)]
            rows = measure_overhead(service, generator, served, cases, options.scratch, **measure)
            _print(f"overhead, {options.threads} threads", overhead_table(rows))
            _print_processes(rows)
            result |= overhead_keys(rows)
        if "texts" in parts:
            texts = measure_texts(generator, served, options.scratch, **measure)
            _print("text queries", text_table(texts))
            result["texts_over_in_process"] = round(min(one.share for one in texts), 3)
        if "peers" in parts:
            beside = measure_ours(service, generator, served, options.scratch, **measure)
    if "peers" in parts:
        for engine in options.peers:
            try:
                beside.append(
                    measure_peer(engine, served, options.scratch, port=free_port(), **measure)
                )
            except (ImportError, NotReadyError) as missing:
                print(f"{NAMES[engine]} did not run: {missing}")
        _print("beside other services", peer_table(beside))
    return result


def _variants(served: Served, options: argparse.Namespace) -> None:
    cases = [usual_cases()[0], usual_cases()[-1], long_cases(served)[-1]]
    table: list[list[str]] = []
    for name in VARIANTS:
        rows = _one_variant(name, served, cases, options)
        head, *lines = overhead_table(rows)
        table = table or [["variant", *head]]
        table += [[name, *line] for line in lines]
        _print(f"variant {name}", [head, *lines])
        _print_processes(rows)
    _print("variants of Ray Serve", table)


def _one_variant(
    name: str, served: Served, cases: Sequence[Any], options: argparse.Namespace
) -> list[Overhead]:
    args = service_args(served, options.threads, in_ingress=options.in_ingress)
    port = free_port()
    environment = _environment(name, port)
    with (
        Service.ours(args, port, environment=environment) as service,
        LoadGenerator(service.port) as generator,
    ):
        measure = {**_measure(options), "rounds": min(2, options.rounds)}
        return measure_overhead(service, generator, served, cases, options.scratch, **measure)


def _larger_texts(options: argparse.Namespace) -> None:
    served = larger(options.folder)
    port = free_port()
    args = _args(served, options)
    environment = _environment(options.variant, port)
    with (
        Service.ours(args, port, environment=environment) as service,
        LoadGenerator(service.port) as generator,
    ):
        texts = measure_texts(generator, served, options.scratch, **_measure(options))
    _print("text queries, a model of hidden size 512", text_table(texts))


def _soak(served: Served, options: argparse.Namespace) -> None:
    args = service_args(served, options.threads, in_ingress=options.in_ingress, load={})
    args["index"] = str(soaked_index(served, options.scratch))
    port = free_port()
    environment = _environment(options.variant, port)
    with Service.ours(args, port, environment=environment) as service:
        rounds = run_soak(
            service, served, options.scratch, rate=options.soak_rate, minutes=options.soak_minutes
        )
    _print("memory without files", soak_table(rounds))
    _print("answers", answer_table(rounds))


def _overload(served: Served, options: argparse.Namespace, *, as_text: bool = False) -> Overload:
    port = free_port()
    found = measure_overload(
        Setting(
            served=served,
            folder=options.scratch,
            port=port,
            threads=options.threads,
            seconds=4.0 if options.quick else options.overload_seconds,
            environment=_environment(options.variant, port),
            factors=QUICK_FACTORS if options.quick or as_text else FACTORS,
            as_text=as_text,
            in_ingress=options.in_ingress,
        )
    )
    print(
        f"\nunloaded p50 {found.unloaded_ms:.1f} ms, p99 {found.unloaded_p99:.1f} ms; capacity "
        f"{found.capacity:.1f}/s; the floor bears {found.floor_capacity:.1f}/s"
    )
    _print("overload, text queries" if as_text else "overload", overload_table(found))
    for file in options.plot:
        plot_overload(found, file.with_stem(f"{file.stem}-text") if as_text else file)
    return found


def overhead_keys(rows: Sequence[Overhead]) -> dict[str, float]:
    """The worst of the three budgets, and of the searches that take long (else the longest)."""
    long = [row for row in rows if row.own_ms >= LONG_MS] or [max(rows, key=lambda r: r.own_ms)]
    usual = rows[: len(usual_cases())]
    return {
        "p50_overhead_ms": round(max(row.added_ms for row in usual), 3),
        "throughput_over_in_process": round(min(row.share for row in long), 3),
    }


def overload_keys(found: Overload) -> dict[str, float]:
    """The worst run with the controller at a rate that the floor bears."""
    borne = [point for point in found.on if point.rate <= found.floor_capacity] or found.on[:1]
    return {
        "overload_p99_over_unloaded": round(max(p.p99 for p in borne) / found.unloaded_p99, 3),
        "overload_refused": round(max(point.refused for point in borne), 4),
        "floor_over_capacity": round(found.floor_capacity / found.capacity, 2),
    }


def _args(served: Served, options: argparse.Namespace) -> dict[str, Any]:
    encoder = {"num_replicas": options.encoders}
    return service_args(served, options.threads, in_ingress=options.in_ingress, encoder=encoder)


def _environment(variant: str, port: int) -> Mapping[str, str]:
    return VARIANTS[variant].with_ports(port, free_port(), free_port())


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "threads": options.threads,
        "rounds": 1 if options.quick else options.rounds,
        "seconds": 1.5 if options.quick else options.seconds,
    }


def _print(title: str, table: list[list[str]]) -> None:
    print(f"\n{title}\n{plain_table(table)}", flush=True)


def _print_processes(rows: Sequence[Overhead]) -> None:
    for row in rows:
        parts = [f"{name} {ms:.2f}" for name, ms in row.processes.items() if ms >= 0.02]
        print(f"  {row.name}: CPU-ms under load: {', '.join(parts)}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="synthetic vectors alone, short runs")
    parser.add_argument("--device", default="cpu", choices=["cpu"])
    parser.add_argument("--folder", type=Path, default=Path("search-vectors"))
    parser.add_argument("--rows", type=int, default=100_000, help="documents of the pages")
    parser.add_argument("--parts", nargs="*", choices=PARTS)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="that search")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each arm in each round")
    parser.add_argument("--overload-seconds", type=float, default=15.0, help="of each rate")
    parser.add_argument("--soak-minutes", type=float, default=30.0)
    parser.add_argument("--soak-rate", type=float, default=20.0, help="searches a second")
    parser.add_argument("--variant", default="default", choices=list(VARIANTS))
    parser.add_argument(
        "--in-ingress", action="store_true", help="the index in the process that answers HTTP"
    )
    parser.add_argument("--encoders", type=int, default=1, help="of text queries, a process each")
    parser.add_argument("--peers", nargs="*", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--plot", type=Path, nargs="*", default=[], help="PNG and SVG to write")
    parser.add_argument("--scratch", type=Path, default=Path("search-vectors") / "serving")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

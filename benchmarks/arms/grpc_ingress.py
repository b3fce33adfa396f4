"""A gRPC ingress in front of the same shard, to tell what HTTP costs: a program and its client.

Takes the JSON bodies of the HTTP API as bytes and answers ids as JSON: the transport differs, the
work does not. For the benchmark alone; nothing of it is served to users.

    python benchmarks/arms/grpc_ingress.py PORT ARGS_AS_JSON
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import grpc
import numpy as np
from google.protobuf.wrappers_pb2 import BytesValue
from load.bodies import vector_bodies
from ray import serve
from shapes.served_corpus import Served

from arms.overhead import WARM_S, Case
from arms.service import ROOT, Service

METHOD = "/rematch.Search/Search"


def add_search_to_server(servicer: Any, server: Any) -> None:
    """What a compiler of .proto files would have written."""
    handler = grpc.unary_unary_rpc_method_handler(
        servicer.Search,
        request_deserializer=BytesValue.FromString,
        response_serializer=BytesValue.SerializeToString,
    )
    service, _, method = METHOD.strip("/").partition("/")
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: handler}),)
    )


@serve.deployment(num_replicas=1, max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
class GrpcIngress:
    """Reads a request, searches, answers.

    Args:
        shard: handle of `Shard`.
    """

    def __init__(self, shard: Any) -> None:
        self._shard = shard

    async def Search(self, request: BytesValue) -> BytesValue:
        """One query by its vectors."""
        from rematch_ray.serve.api.search import SearchRequest
        from rematch_ray.serve.backend import EncodedQuery
        from rematch_ray.serve.wire import Asked

        told = SearchRequest.model_validate_json(request.value)
        query = EncodedQuery(
            np.array([told.vectors], np.float32), np.array([told.fused], np.float32)
        )
        how = {"budget": told.budget, "candidates": told.candidates}
        found = await self._shard.search.remote(Asked(None, query, how))
        return BytesValue(value=json.dumps([hit.id for hit in found.result.hits]).encode())


def measure_grpc(
    served: Served,
    cases: Sequence[Case],
    folder: Path,
    args: Mapping[str, Any],
    port: int,
    seconds: float,
    environment: Mapping[str, str],
) -> list[list[str]]:
    """Rows for people: the median of one request at a time over gRPC."""
    told = json.dumps({"allow_anonymous": True, **args})
    command = [str(Path(__file__).resolve()), str(port), told]
    rows = [["request", "p50 ms over gRPC"]]
    # Serve's proxy imports this module by name
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    environment = {**environment, "PYTHONPATH": path}
    with Service(command, port, ready="/-/healthz", environment=environment):
        for case in cases:
            file = vector_bodies(folder / "grpc.jsonl", served.queries, **case.asked)
            bodies = [line.encode() for line in file.read_text().splitlines()]
            ask(port + 1, bodies, WARM_S)
            rows.append([case.name, f"{ask(port + 1, bodies, seconds):.2f}"])
    return rows


def ask(port: int, bodies: Sequence[bytes], seconds: float) -> float:
    """Median milliseconds of one request at a time."""
    spent: list[float] = []
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(
            METHOD,
            request_serializer=BytesValue.SerializeToString,
            response_deserializer=BytesValue.FromString,
        )
        until = time.perf_counter() + seconds
        while (began := time.perf_counter()) < until:
            body = bodies[len(spent) % len(bodies)]
            call(BytesValue(value=body), metadata=(("application", "grpc"),), wait_for_ready=True)
            spent.append(1000 * (time.perf_counter() - began))
    return statistics.median(spent)


def main() -> int:
    """Serves until the input ends."""
    from ray.serve.config import HTTPOptions, gRPCOptions

    from rematch_ray.serve.settings import ServeArgs
    from rematch_ray.serve.shard import Shard
    from rematch_ray.workloads.runtime import connect

    os.environ.pop("RAY_ADDRESS", None)
    port, args = int(sys.argv[1]), ServeArgs.model_validate_json(sys.argv[2])
    shard = serve.deployment(max_ongoing_requests=1000)(Shard)
    bound = shard.bind(str(args.index.resolve()), args.shard.num_threads)
    with connect([]):
        serve.start(
            http_options=HTTPOptions(host="127.0.0.1", port=port),
            grpc_options=gRPCOptions(
                port=port + 1,
                grpc_servicer_functions=["arms.grpc_ingress.add_search_to_server"],
            ),
        )
        # asked for by nobody: without any route Serve's proxy never says that it is ready
        serve.run(GrpcIngress.bind(bound), name="grpc", route_prefix="/grpc")
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

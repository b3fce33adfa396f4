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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import grpc
from google.protobuf.wrappers_pb2 import BytesValue
from ray import serve

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
        from rematch_ray.serve.api import SearchRequest
        from rematch_ray.serve.backend import SearchPlan
        from rematch_ray.serve.routes import given_vectors

        asked = SearchRequest.model_validate_json(request.value)
        query = given_vectors(asked.vectors or [], asked.fused)
        found = await self._shard.search.remote(query, SearchPlan(asked.budget, asked.candidates))
        return BytesValue(value=json.dumps([hit.id for hit in found.hits]).encode())


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
        serve.run(GrpcIngress.bind(bound), name="grpc", route_prefix=None)
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""The HTTP service: a FastAPI ingress over an encoder and an index, composed with Ray Serve.

What a request means stands in api, routes, limits and media and is tested without Ray; encoder,
shard and app are adapters that place the same objects on a cluster. Top floor.
"""

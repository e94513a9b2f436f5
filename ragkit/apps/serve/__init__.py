"""The server: HTTP and MCP over open indexes and loaded models.

    app = create_app(Service({"library": index}))          # an ASGI application
    ragkit serve library                                   # the same behind uvicorn

A request passes `gate.py` (key, body limit, deadline), then a route. Vectors come from `batching.py`, one queue per model.
Everything here is an extra: fastapi, uvicorn and prometheus-client are imported when a server is made, and not before.
"""

"""An OpenAI-compatible HTTP server around the engine. Knows nothing of scheduling or of tensors."""

from neobench.neo_engine.server.app import create_app
from neobench.neo_engine.server.serve import serve

__all__ = ["create_app", "serve"]

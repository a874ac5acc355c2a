"""clear_ray behind HTTP: an OpenAI-compatible Ray Serve application that sells a token budget per second at a price."""

from clear_ray.serve.app import build_app
from clear_ray.serve.settings import ServeConfig

__all__ = ["ServeConfig", "build_app"]

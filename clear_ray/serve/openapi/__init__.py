"""The OpenAPI description of a server, as its settings make it, and the page at `/docs` that shows it."""

from clear_ray.serve.openapi.document import describe
from clear_ray.serve.openapi.reference import reference_page

__all__ = ["describe", "reference_page"]

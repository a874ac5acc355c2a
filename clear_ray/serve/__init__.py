"""clear_ray behind HTTP: an OpenAI-compatible Ray Serve application that sells a token budget per second at a price."""

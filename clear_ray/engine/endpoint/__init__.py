"""An engine over HTTP: any OpenAI-compatible endpoint behind the protocol `Engine`. Needs the `endpoint` extra."""

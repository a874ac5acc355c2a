"""A batch run on Ray: probe, price, generate, settle, and the page that says what came of it."""

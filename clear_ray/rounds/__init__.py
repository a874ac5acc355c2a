"""The law of a run, pure: which queries are granted how much, round by round, and what comes of it."""

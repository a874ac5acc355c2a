"""What a run tells people: progress, the report, its page and its figures."""

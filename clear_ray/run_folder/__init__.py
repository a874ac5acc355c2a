"""What a run folder remembers, and how it is read again."""

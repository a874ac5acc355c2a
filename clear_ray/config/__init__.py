"""Settings: one YAML file, checked before anything is loaded."""

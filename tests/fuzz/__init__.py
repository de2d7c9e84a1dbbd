"""Fuzzing: ``python -m tests.fuzz graphs`` (random models) and ``python -m tests.fuzz files`` (mutated files)."""

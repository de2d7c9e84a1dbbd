"""The command line: one module a verb. The only place that prints, configures logging or exits."""

"""The rewrites, one module a rule: each states its identity, when it holds and what it costs."""

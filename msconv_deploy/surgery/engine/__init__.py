"""What is known of a tensor, and how a graph is edited. Knows operators, not rewrites."""

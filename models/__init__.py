"""Reference networks, their training and their checkpoints. Not part of the installed package."""

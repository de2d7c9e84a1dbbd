"""Triton model repositories: ``msconv package``.

- ``config`` writes ``config.pbtxt`` through its protobuf and compares one with a model;
- ``plan`` checks that a TensorRT plan is of the model, and with which plugin libraries;
- ``validate`` loads what was staged and runs the warm-up sample;
- ``repository`` puts a model folder in its place, complete or not at all;
- ``deploy`` writes the launch line, the compose file, the KServe manifest and the README;
- ``package`` is the verb without the command line.

Needs the extra ``serve`` for Triton's protobuf. A Triton server is not needed.
"""

"""The TensorRT plugin library: compiled from the sources in ``plugins/``, and loaded into a registry to look at it.

- ``toolkit`` finds the CUDA compiler, CMake and Ninja; ``headers`` finds or fetches TensorRT's C++ headers;
- ``build`` runs CMake and writes the library with a sidecar;
- ``check`` loads a library into a TensorRT registry, in a process of its own, and lists its creators and their fields.

Where engines look for plugin libraries, and "plugin not found", is ``runtimes.tensorrt.plugins``.
"""

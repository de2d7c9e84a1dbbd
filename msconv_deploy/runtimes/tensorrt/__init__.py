"""TensorRT engines: built from ONNX files with or without the plugin, inspected, cached and run.

- ``bindings`` finds the Python bindings and the GPU, before anything of TensorRT is created;
- ``api`` is where TensorRT 8.6, 10, 11 and TensorRT-RTX differ;
- ``plugins`` loads plugin libraries and checks that every plugin node has a creator;
- ``profiles`` gives dynamic inputs their shapes;
- ``build`` turns a model into a serialized engine (a *plan*), ``key`` says what a plan depends on, ``engine`` puts it all
  together with the cache and the sidecar;
- ``inspect`` reads a plan back and compares its precision with what the graph asks;
- ``session`` runs an engine again and again, for ``msconv serve``;
- ``runner`` is the runtime ``trt`` of ``msconv validate``.

`tensorrt` itself is imported when it is needed, never when these modules are.
"""

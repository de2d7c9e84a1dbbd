"""A model as an endpoint: the Open Inference Protocol (KServe v2) over HTTP and gRPC.

``runtime`` says what computes it: ``onnx_runtime`` an ONNX file, ``tensorrt_plan`` a TensorRT engine. ``model`` adds its
name and whether samples may be joined, ``batching`` joins requests, ``service`` is what both protocols call, ``http`` and
``grpc`` speak them, ``connections`` bounds those of HTTP, ``server`` starts and stops both. Clients are those of NVIDIA
Triton (``tritonclient``), unchanged.

Importing this package imports nothing; its modules need the extra ``serve``.
"""

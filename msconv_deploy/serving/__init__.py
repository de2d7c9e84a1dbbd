"""A model as an endpoint: the Open Inference Protocol (KServe v2) over HTTP and gRPC, on ONNX Runtime.

``model`` runs it, ``batching`` joins requests, ``service`` is what both protocols call, ``http`` and ``grpc`` speak them,
``server`` starts and stops both. Clients are those of NVIDIA Triton (``tritonclient``), unchanged.

Importing this package imports nothing; its modules need the extra ``serve``.
"""

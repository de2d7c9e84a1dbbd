"""Stand-in for Triton's onnxruntime backend: the python backend running ONNX Runtime on the CPU, batches joined.

It lies where a Triton server looks for the onnxruntime backend, so that an unchanged model repository is served where
only the python backend is there. Triton's core does everything else: protocols, checks, queues, batching, warm-up.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils  # comes with the server


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        file = Path(args["model_repository"], args["model_version"], config["default_model_filename"])
        self.session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        self.inputs = [entry["name"] for entry in config["input"]]
        self.outputs = [entry["name"] for entry in config["output"]]
        self.joins = config["max_batch_size"] > 0

    def execute(self, requests):
        feeds = [{n: pb_utils.get_input_tensor_by_name(r, n).as_numpy() for n in self.inputs} for r in requests]
        if not self.joins:
            return [self.answer(feed, [None])[0] for feed in feeds]
        ends = np.cumsum([len(feed[self.inputs[0]]) for feed in feeds])
        joined = {n: np.concatenate([feed[n] for feed in feeds]) for n in self.inputs}
        return self.answer(joined, [slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)])

    def answer(self, feed, parts):
        """Run once; one response for each part of the batch, None being all of it."""
        try:
            results = self.session.run(self.outputs, feed)
        except Exception as error:
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error))) for _ in parts]
        named = list(zip(self.outputs, results, strict=True))
        cut = [[pb_utils.Tensor(n, r if part is None else r[part]) for n, r in named] for part in parts]
        return [pb_utils.InferenceResponse(tensors) for tensors in cut]

"""Repeat a text `count` times, `gap_s` apart, from a thread: the shape of the real runtime without a model."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """An echo in its own time."""

    def initialize(self, args):
        """Read the prefix that the launcher may have set; refuse to load when told to."""
        parameters = json.loads(args["model_config"])["parameters"]
        self.end_marker = Path(args["model_repository"]).parents[1] / "end-requests"
        self.prefix = parameters["prefix"]["string_value"]
        if self.prefix == "refuse":
            raise pb_utils.TritonModelException("the prefix is 'refuse' but must be anything else. Set another.")
        pb_utils.Logger.log_info(f"dsv4 progress: echo loads as {self.prefix}")

    def execute(self, requests):
        """Return at once; each request answers from a thread."""
        for request in requests:
            text, count, gap_s = (
                pb_utils.get_input_tensor_by_name(request, name).as_numpy()[0]
                for name in ("text_input", "count", "gap_s")
            )
            sender = request.get_response_sender()
            threading.Thread(target=self.answer, args=(sender, text, count, gap_s)).start()

    def answer(self, sender, text, count, gap_s):
        """Send every repetition, then the final flag."""
        for index in range(count):
            if self.end_marker.exists():
                text = b"ended"
            words = f"{self.prefix}:{text.decode()}:{index}".encode()
            tensor = pb_utils.Tensor("text_output", np.array([words], dtype=np.object_))
            sender.send(pb_utils.InferenceResponse(output_tensors=[tensor]))
            if text == b"ended":
                break
            time.sleep(float(gap_s))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

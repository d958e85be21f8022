"""The zoo: data, networks, training, and the contract of its artefacts."""

import os

# ONNX Runtime 1.31 sends usage data and keeps an identifier below ~/.cache, unless told not to before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

"""Maps an artefact to a smaller artefact."""

import zoo  # noqa: F401 - switches ONNX Runtime's telemetry off, before modules of this package import it

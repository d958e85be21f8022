"""A folder that an image of the server is built from: models, sources, pinned requirements, manifests."""

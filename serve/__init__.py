"""Serving on Ray Serve: an HTTP ingress and a translator that answers whole batches. Reads bundles, writes nothing."""

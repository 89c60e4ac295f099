"""The endpoints, one file a topic."""

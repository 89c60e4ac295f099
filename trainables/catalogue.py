"""The table of contents: every method by name. Only what is listed here is ever built from a configuration or a bundle."""

METHODS: dict[str, str] = {
    "mguit": "trainables.mguit:MGUIT",
}

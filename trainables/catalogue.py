"""The table of contents: every method by name. Only what is listed here is ever built from a configuration or a bundle."""

METHODS: dict[str, str] = {
    "mguit": "trainables.mguit:MGUIT",
    "drit": "trainables.drit:DRIT",
    "cyclegan": "trainables.cyclegan:CycleGAN",
    "munit": "trainables.munit:MUNIT",
    "unit": "trainables.unit:UNIT",
    "detector": "trainables.detector:Detector",
}

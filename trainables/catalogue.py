"""The table of contents: every method by name. Only what is listed here is ever built from a configuration or a bundle."""

METHODS: dict[str, str] = {
    "mguit": "trainables.mguit:MGUIT",
    "drit": "trainables.drit:DRIT",
    "cyclegan": "trainables.cyclegan:CycleGAN",
    "munit": "trainables.munit:MUNIT",
    "unit": "trainables.unit:UNIT",
    "gmm_unit": "trainables.gmm_unit:GMMUNIT",
    "retriever": "trainables.retriever:Retriever",
    "rg_unit": "trainables.rg_unit:RGUNIT",
    "detector": "trainables.detector:Detector",
    "classifier": "trainables.classifier:Classifier",
    "features": "trainables.features:Features",
}

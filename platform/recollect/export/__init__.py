"""A bundle in forms that others read: a `torch.export` program, an ONNX model, a folder for a hub.

graph.py     a translator as a function of tensors alone, and what it takes
parity.py    whether an exported form gives what the Pipeline gives, on real pictures
program.py   torch.export
onnx.py      ONNX
hub.py       a bundle with a model card
write.py     the folder with one of the first two, its `export.json` and its README
"""

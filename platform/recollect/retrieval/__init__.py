import logging

logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # else every process tells which instructions it was built for

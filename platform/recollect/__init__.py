"""Recollect: image translators guided by memory and by retrieval, trained, searched and served on Ray.

Importing this package is cheap: torch, Ray and pydantic are imported by the modules that need them.
"""

__version__ = "0.1.0"

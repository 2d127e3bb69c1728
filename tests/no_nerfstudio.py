"""The start of a program to which nerfstudio is not there."""

from __future__ import annotations

WITHOUT_NERFSTUDIO = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "nerfstudio":
            raise ImportError("nerfstudio is blocked in this test")

sys.meta_path.insert(0, Blocker())
"""

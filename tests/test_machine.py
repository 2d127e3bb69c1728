"""What this machine has to give."""

from __future__ import annotations

from pathlib import Path

from mnif_nerf.machine import _group_memory, available_memory


def test_cached_files_of_a_container_count_as_free(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("990\n")
    (tmp_path / "memory.stat").write_text("anon 190\nfile 800\nactive_file 300\ninactive_file 400\nshmem 100\n")
    assert _group_memory(tmp_path) == 1000 - 990 + 300 + 400
    (tmp_path / "memory.max").write_text("max\n")
    assert _group_memory(tmp_path) is None


def test_some_memory_is_free() -> None:
    free = available_memory()
    assert free is None or free > 0

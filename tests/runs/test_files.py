"""Files are replaced in one step, whoever else writes them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from grokscope.runs.files import write_bytes


def test_many_writers_of_one_file_leave_one_of_their_contents_whole(tmp_path):
    target = tmp_path / "figure.png"
    contents = [bytes([number]) * 200_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            list(pool.map(lambda content: write_bytes(target, content), contents))
            assert target.read_bytes() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]

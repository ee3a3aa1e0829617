"""Free memory and disk: the least of the machine's and of the cgroups around this process."""

from __future__ import annotations

import pytest

from pipeline.core.limits import free_disk_bytes, free_memory_bytes

GIB = 1 << 30
HAS = 1 << 20


@pytest.fixture
def root(tmp_path):
    """Return a function that writes files below a root with 8 GiB free, of which this process has 1 MiB."""

    def write(files: dict[str, str]):
        files = {
            "proc/meminfo": f"MemTotal: {16 << 20} kB\nMemAvailable: {8 << 20} kB\n",
            "proc/self/status": "Name:\tpython\nRssAnon:\t 1024 kB\n",
            **files,
        }
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return write


def test_without_cgroups_it_is_what_the_machine_has(root):
    assert free_memory_bytes(root({})) == 8 * GIB + HAS


@pytest.mark.parametrize(
    ("limit", "used", "stat", "expected"),
    [
        (4 * GIB, GIB, "anon 5\ninactive_file 0\n", 3 * GIB),
        (4 * GIB, GIB, f"inactive_file {GIB // 2}\n", 3.5 * GIB),
        (GIB, 2 * GIB, "", 0),
        ("max", GIB, "", 8 * GIB),
        (64 * GIB, GIB, "", 8 * GIB),
    ],
)
def test_a_limit_of_version_two_bounds_it(root, limit, used, stat, expected):
    files = {"memory.max": str(limit), "memory.current": str(used), "memory.stat": stat}
    place = root(
        {f"sys/fs/cgroup/a/{name}": text for name, text in files.items()}
        | {"proc/self/cgroup": "0::/a/b\n"}
    )
    assert free_memory_bytes(place) == expected + HAS


@pytest.mark.parametrize(("limit", "expected"), [(4 * GIB, 3 * GIB), ((1 << 63) - 4096, 8 * GIB)])
def test_a_limit_of_version_one_bounds_it(root, limit, expected):
    files = {"memory.limit_in_bytes": str(limit), "memory.usage_in_bytes": str(GIB), "memory.stat": ""}
    place = root(
        {f"sys/fs/cgroup/memory/{name}": text for name, text in files.items()}
        | {"proc/self/cgroup": "4:memory:/docker/ab12\n3:cpu:/x\n"}
    )
    assert free_memory_bytes(place) == expected + HAS


def test_a_system_that_does_not_tell_is_none(tmp_path):
    assert free_memory_bytes(tmp_path) is None


def test_the_disk_is_that_of_the_nearest_folder_that_exists(tmp_path):
    assert free_disk_bytes(tmp_path / "not/yet/there") > 0

"""Local runs listen on the loopback only."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.cluster

SCRIPT = """
import json
import psutil
import ray
from pipeline.run.fleet.fleet import local_fleet

with local_fleet(1):
    ray.get(ray.remote(lambda: 1).remote())  # a worker is up
    own = psutil.Process()
    found = {
        (process.name(), connection.laddr.ip)
        for process in [own, *own.children(recursive=True)]
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    }
print(json.dumps(sorted(found)))
"""


def test_a_local_ray_keeps_to_the_loopback() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert {"gcs_server", "raylet"} <= {name for name, _ in found}
    outside = [(name, ip) for name, ip in found if ip.removeprefix("::ffff:") != "127.0.0.1"]
    assert outside == []

"""An S3-compatible server on loopback, for this process and those it starts."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

# What the server is told, and what must appear nowhere.
PLANTED = "planted-secret-of-the-store"


@contextmanager
def s3_bucket() -> Iterator[str]:
    """The URI of a bucket of its own; the environment says how to reach it."""
    pytest.importorskip("s3fs", reason="the S3 driver is not installed")
    server_module = pytest.importorskip("moto.server", reason="moto is not installed")
    import s3fs

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test-access-id",
            "AWS_SECRET_ACCESS_KEY": PLANTED,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        bucket = f"results-{uuid.uuid4().hex[:8]}"
        s3fs.S3FileSystem(use_listings_cache=False).mkdir(bucket)
        try:
            yield f"s3://{bucket}"
        finally:
            s3fs.S3FileSystem.clear_instance_cache()
            server.stop()

"""A real S3 server on loopback, with one bucket, which tests can stop and start again."""

import logging

import fsspec
import s3fs
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

NAME = "bucket"
BUCKET = f"s3://{NAME}"
REGION = "us-east-1"
# Each library tries once: the attempts that are tested are those of telecine.
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": REGION,
    "AWS_MAX_ATTEMPTS": "1",
}


class S3:
    """The server. Its objects stay when it is stopped.

    It is in the test process: files are put into its memory without requests, which would take longer than many tests.
    """

    _objects = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]

    def __init__(self):
        s3fs.S3FileSystem.retries = 1
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # one line for each request
        self.port = 0
        self.start()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.port}"

    @property
    def files(self):
        return fsspec.filesystem("s3", use_listings_cache=False)

    def start(self):
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()
        _, self.port = self._server.get_host_and_port()

    def stop(self):
        self._server.stop()
        self._server = None

    def put(self, folder, prefix):
        """Upload a folder, and return its address."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name = f"{prefix}/{path.relative_to(folder).as_posix()}"
                self._objects.put_object(NAME, name, path.read_bytes())
        return f"{BUCKET}/{prefix}"

    def clear(self):
        """Make it run, with an empty bucket."""
        if self._server is None:
            self.start()
        self._objects.reset()
        self._objects.create_bucket(NAME, REGION)

"""A real S3 server on loopback, with one bucket, which tests can stop and start again."""

import logging

import fsspec
import s3fs
from moto.server import ThreadedMotoServer

BUCKET = "s3://bucket"
# Each library tries once: the attempts that are tested are those of telecine.
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",
}


class S3:
    """The server. Its objects stay when it is stopped."""

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
                self.files.put_file(
                    str(path), f"{BUCKET}/{prefix}/{path.relative_to(folder).as_posix()}"
                )
        return f"{BUCKET}/{prefix}"

    def clear(self):
        """Make it run, with an empty bucket."""
        if self._server is None:
            self.start()
        if self.files.exists(BUCKET):
            self.files.rm(BUCKET, recursive=True)
        self.files.mkdir(BUCKET)

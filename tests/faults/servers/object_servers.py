"""Real object stores on loopback: how each is started, asked for a bucket, killed and started again.

moto keeps its word on conditional puts and enforces IAM policies; Swift keeps its objects on disk; rclone
takes conditions and ignores them; Azurite speaks Azure, the GCS emulator Google's JSON API without conditions
and without users. They are installed by the script beside this file.
"""

import base64
import getpass
import os
import signal
import socket
import subprocess
import textwrap
import time
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SERVERS = Path(__file__).resolve().parents[3] / ".servers"
PYTHON_BIN = SERVERS / "venv" / "bin"
AZURITE = SERVERS / "node" / "node_modules" / ".bin" / "azurite-blob"
# A slow machine that does other things, too.
START_SECONDS = 300
REGION = "us-east-1"


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(is_so: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, f"{what} did not happen within {seconds} s"
        time.sleep(0.05)


def listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.settimeout(5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class Processes:
    """The processes of one server, which can be killed and started again as they were."""

    commands: list[list[str]]
    ports: list[int]
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        environment = {
            **{
                k: v
                for k, v in os.environ.items()
                if not k.startswith(("AWS_", "AZURE_", "GOOGLE_"))
            },
            "PATH": f"{PYTHON_BIN}:{os.environ['PATH']}",
            **self.environment,
        }
        for command in self.commands:
            with self.log.open("ab") as log:
                # A group of its own: what it forks is stopped with it.
                process = subprocess.Popen(
                    command, stdout=log, stderr=log, env=environment, start_new_session=True
                )
            self.running.append(process)
        for port in self.ports:
            wait_until(lambda port=port: self._listens(port), f"{self.commands[0][0]} on {port}")

    def _listens(self, port: int) -> bool:
        if any(process.poll() is not None for process in self.running):
            raise RuntimeError(f"a server ended:\n{self.log.read_text(errors='replace')[-3000:]}")
        return listens(port)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        for process in self.running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, how)
        for process in self.running:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            # Workers of a parent that was killed are in its group, and hold the port.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        self.running.clear()

    def kill(self) -> None:
        self.stop(signal.SIGKILL)


class ObjectServer:
    """A store that answers: where it is, and who may use it."""

    scheme = "s3"

    def __init__(self, name: str, processes: Processes, key: str, secret: str) -> None:
        self.name, self.processes, self.key, self.secret = name, processes, key, secret
        self.port = processes.ports[-1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.clients: dict[tuple[str, str], Any] = {}

    def client(self, service: str = "s3") -> Any:
        """A client of botocore itself, for what tests prepare and look at behind our back."""
        wanted = (service, self.key)
        if wanted not in self.clients:
            self.clients[wanted] = self._client(service)
        return self.clients[wanted]

    def _client(self, service: str) -> Any:
        import botocore.config
        import botocore.session

        config = botocore.config.Config(
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        options = {
            "endpoint_url": self.endpoint,
            "aws_access_key_id": self.key,
            "aws_secret_access_key": self.secret,
            "region_name": REGION,
            "config": config,
        }
        return botocore.session.Session().create_client(service, **options)

    def bucket(self) -> str:
        """Make a bucket and return its name."""
        name = f"lake-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return name

    def options(self, **given: Any) -> dict[str, Any]:
        """What a Prefect block would hand to fsspec."""
        return {"endpoint_url": self.endpoint, "key": self.key, "secret": self.secret, **given}

    def environment(self, endpoint: str = "") -> dict[str, str]:
        """What a shell would export."""
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_DEFAULT_REGION": REGION,
        }

    def names(self, bucket: str) -> list[str]:
        """What the store lists, asked behind our back."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


class AzureServer(ObjectServer):
    scheme = "az"

    @property
    def connection_string(self) -> str:
        return self.connection_string_at(self.endpoint)

    def connection_string_at(self, endpoint: str) -> str:
        return (
            f"DefaultEndpointsProtocol=http;AccountName={self.key};AccountKey={self.secret};"
            f"BlobEndpoint={endpoint}/{self.key};"
        )

    def bucket(self) -> str:
        from azure.storage.blob import BlobServiceClient

        name = f"lake-{uuid.uuid4().hex[:12]}"
        with BlobServiceClient.from_connection_string(self.connection_string) as client:
            client.create_container(name)
        return name

    def options(self, **given: Any) -> dict[str, Any]:
        return {"connection_string": self.connection_string, **given}

    def environment(self, endpoint: str = "") -> dict[str, str]:
        at = self.connection_string_at(endpoint or self.endpoint)
        return {"AZURE_STORAGE_CONNECTION_STRING": at}

    def names(self, bucket: str) -> list[str]:
        from azure.storage.blob import BlobServiceClient

        with BlobServiceClient.from_connection_string(self.connection_string) as client:
            return [blob.name for blob in client.get_container_client(bucket).list_blobs()]


class GcsServer(ObjectServer):
    scheme = "gs"

    def _request(self, path: str, body: dict[str, str] | None = None) -> dict[str, Any]:
        import json

        data = None if body is None else json.dumps(body).encode()
        url = f"{self.endpoint}/storage/v1/b{path}"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def bucket(self) -> str:
        name = f"lake-{uuid.uuid4().hex[:12]}"
        self._request("?project=lake", {"name": name})
        return name

    def options(self, **given: Any) -> dict[str, Any]:
        return {"endpoint_url": self.endpoint, "token": "anon", **given}

    def environment(self, endpoint: str = "") -> dict[str, str]:
        return {"STORAGE_EMULATOR_HOST": endpoint or self.endpoint}

    def names(self, bucket: str) -> list[str]:
        return [entry["name"] for entry in self._request(f"/{bucket}/o").get("items", [])]


# --- moto ---


def start_moto(folder: Path) -> ObjectServer:
    """Start moto with authentication: the first four calls are free and make the first user."""
    port = free_port()
    processes = Processes(
        [[str(PYTHON_BIN / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]],
        [port],
        folder / "moto.log",
        {"INITIAL_NO_AUTH_ACTION_COUNT": "4"},
    )
    processes.start()
    server = ObjectServer("moto", processes, "first", "call")
    key = make_user(server, "lake-owner", [{"Effect": "Allow", "Action": "*", "Resource": "*"}])
    server.client().list_buckets()
    server.key, server.secret = key
    return server


def make_user(
    server: ObjectServer, name: str, statements: Sequence[dict[str, Any]]
) -> tuple[str, str]:
    """Make a user of moto with these permissions; return the key id and the secret."""
    import json

    iam = server.client("iam")
    iam.create_user(UserName=name)
    policy = {"Version": "2012-10-17", "Statement": list(statements)}
    iam.put_user_policy(UserName=name, PolicyName="given", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return key["AccessKeyId"], key["SecretAccessKey"]


# --- rclone ---


def start_rclone(folder: Path) -> ObjectServer:
    port = free_port()
    (folder / "objects").mkdir(parents=True)
    key, secret = "rclone-key", uuid.uuid4().hex
    command = [
        *(str(PYTHON_BIN / "rclone"), "serve", "s3", str(folder / "objects")),
        *("--addr", f"127.0.0.1:{port}", "--auth-key", f"{key},{secret}", "--config", "/dev/null"),
    ]
    processes = Processes([command], [port], folder / "rclone.log")
    processes.start()
    return ObjectServer("rclone", processes, key, secret)


# --- Azurite ---


def start_azurite(folder: Path) -> AzureServer:
    port = free_port()
    secret = base64.b64encode(uuid.uuid4().bytes * 4).decode()
    command = [
        *(str(AZURITE), "--inMemoryPersistence", "--blobHost", "127.0.0.1"),
        *("--blobPort", str(port), "--skipApiVersionCheck", "--silent", "--disableTelemetry"),
    ]
    environment = {"AZURITE_ACCOUNTS": f"lakeaccount:{secret}"}
    processes = Processes([command], [port], folder / "azurite.log", environment)
    processes.start()
    return AzureServer("azurite", processes, "lakeaccount", secret)


# --- GCS ---


def start_gcs(folder: Path) -> GcsServer:
    port = free_port()
    command = [
        *(str(PYTHON_BIN / "gcp-storage-emulator"), "start", "--in-memory", "--quiet"),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]
    processes = Processes([command], [port], folder / "gcs.log")
    processes.start()
    return GcsServer("gcs", processes, "", "")


# --- Swift ---

SWIFT_KEY, SWIFT_SECRET = "test:tester", "testsecret"
_PIPELINE = "catch_errors healthcheck listing_formats bulk s3api tempauth copy slo dlo proxy-server"


class SwiftServer(ObjectServer):
    lenient_port = 0

    def lenient(self) -> ObjectServer:
        """The same objects through a proxy that takes signatures of any time."""
        server = ObjectServer(self.name, self.processes, self.key, self.secret)
        server.port, server.endpoint = self.lenient_port, f"http://127.0.0.1:{self.lenient_port}"
        return server


def start_swift(folder: Path, *, skew_seconds: int = 0) -> SwiftServer:
    """Start Swift's four servers on one device that is a folder; with another clock where asked."""
    folder.mkdir(parents=True, exist_ok=True)
    ports = {kind: free_port() for kind in ("account", "container", "object")}
    ports |= {"lenient": free_port()} if skew_seconds else {}
    ports |= {"proxy": free_port()}
    (folder / "devices" / "sdb1").mkdir(parents=True)
    common = f"bind_ip = 127.0.0.1\nworkers = 1\nswift_dir = {folder}\nuser = {getpass.getuser()}\n"
    (folder / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_suffix = tests\n[storage-policy:0]\nname = one\ndefault = yes\n"
    )
    for kind in ("account", "container", "object"):
        (folder / f"{kind}.conf").write_text(
            f"[DEFAULT]\nbind_port = {ports[kind]}\n{common}mount_check = false\n"
            f"devices = {folder / 'devices'}\nfallocate_reserve = 0\n"
            f"[pipeline:main]\npipeline = {kind}-server\n[app:{kind}-server]\nuse = egg:swift#{kind}\n"
        )
        _make_ring(folder, kind, ports[kind])
    filters = "".join(
        f"[filter:{name}]\nuse = egg:swift#{name}\n"
        for name in _PIPELINE.split()
        if name not in ("proxy-server", "s3api", "tempauth")
    )
    for kind in ports.keys() & {"proxy", "lenient"}:
        skew = 900 if kind == "proxy" else 10**9
        (folder / f"{kind}.conf").write_text(
            f"[DEFAULT]\nbind_port = {ports[kind]}\n{common}"
            f"[pipeline:main]\npipeline = {_PIPELINE}\n"
            "[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\n"
            f"[filter:s3api]\nuse = egg:swift#s3api\ns3_acl = false\nlocation = {REGION}\n"
            f"allowable_clock_skew = {skew}\n"
            f"[filter:tempauth]\nuse = egg:swift#tempauth\nuser_test_tester = {SWIFT_SECRET} .admin\n"
            f"{filters}"
        )
    processes = Processes(
        [[*_swift(kind, skew_seconds), str(folder / f"{kind}.conf")] for kind in ports],
        list(ports.values()),
        folder / "swift.log",
        {"SWIFT_CONF_DIR": str(folder)},
    )
    processes.start()
    server = SwiftServer("swift", processes, SWIFT_KEY, SWIFT_SECRET)
    server.lenient_port = ports.get("lenient", 0)
    wait_until(lambda: is_healthy(server), "Swift's health")
    return server


def _make_ring(folder: Path, kind: str, port: int) -> None:
    builder = str(folder / f"{kind}.builder")
    ring = str(PYTHON_BIN / "swift-ring-builder")
    for words in (
        ["create", "4", "1", "1"],
        ["add", f"r1z1-127.0.0.1:{port}/sdb1", "1"],
        ["rebalance"],
    ):
        subprocess.run([ring, builder, *words], check=True, capture_output=True)


def is_healthy(server: ObjectServer) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"{server.endpoint}/healthcheck", timeout=10):
        return True
    return False


# A server whose clock is wrong: the rest of the machine has the right time.
_SKEWED = textwrap.dedent(
    """
    import runpy, sys, time
    true_time, program = time.time, sys.argv[1]
    time.time = lambda: true_time() + {seconds}
    sys.argv = sys.argv[1:]
    runpy.run_path(program, run_name="__main__")
    """
)


def _swift(kind: str, skew_seconds: int) -> list[str]:
    program = str(PYTHON_BIN / f"swift-{'proxy' if kind == 'lenient' else kind}-server")
    if not skew_seconds:
        return [program]
    script = _SKEWED.format(seconds=skew_seconds)
    return [str(PYTHON_BIN / "python"), "-c", script, program]

"""Requests to hosts that a user named: what is refused, and what a name can't do."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest

from service.egress import Egress, Resolve, is_public
from service.problems import DestinationRefused, DestinationUnresolved

PUBLIC = "93.184.215.14"


class Answer(BaseHTTPRequestHandler):
    """Says which host was asked for; `/away` redirects, `/slow` never ends."""

    def do_GET(self) -> None:
        if self.path == "/slow":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            while not self.server.stopped.wait(0.05):  # type: ignore[attr-defined]
                self.wfile.write(b"X-More: header\r\n")
            return
        self.send_response(302 if self.path == "/away" else 200)
        self.send_header("Location", "http://169.254.169.254/latest/meta-data")
        self.end_headers()
        self.wfile.write(self.headers["Host"].encode())

    def log_message(self, *args: object) -> None:
        """Silence."""


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server on 127.0.0.1; yields its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.stopped = threading.Event()  # type: ignore[attr-defined]
    server.handle_error = lambda *_: None  # type: ignore[assignment,method-assign]
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server.server_port
    server.stopped.set()  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def port() -> Iterator[int]:
    with serving() as port:
        yield port


def names(*answers: str | list[str]) -> Resolve:
    """A resolver that gives one answer after the other, the last one for ever."""
    left = list(answers)

    async def resolve(host: str, port: int) -> list[str]:
        answer = left.pop(0) if len(left) > 1 else left[0]
        return [answer] if isinstance(answer, str) else answer

    return resolve


def get(egress: Egress, url: str, *, seconds: float = 5.0) -> tuple[int, str]:
    async def ask() -> tuple[int, str]:
        async with egress.stream("GET", url, seconds=seconds) as response:
            return response.status_code, (await response.aread()).decode()

    return asyncio.run(ask())


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "168.63.129.16",
        "192.0.0.192",
        "100.100.100.200",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
    ],
)
def test_address_that_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", [PUBLIC, "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_address_that_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.fault_case(35)
@pytest.mark.parametrize(
    "url",
    [
        "https://localhost/",
        "https://LOCALHOST/",
        "https://127.0.0.1:8000/",
        "https://127.1/",
        "https://0x7f.0.0.1/",
        "https://2130706433/",
        "https://2852039166/latest/meta-data",
        "https://0/",
        "https://127。0。0。1/",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[::ffff:a9fe:a9fe]/",
        "https://[64:ff9b::a9fe:a9fe]/",
        "https://[fd00:ec2::254]/",
    ],
)
def test_private_destination_is_refused_however_it_is_written(url: str) -> None:
    with pytest.raises(DestinationRefused, match="public internet"):
        asyncio.run(Egress().admit(url))
    with pytest.raises(DestinationRefused, match="public internet"):
        get(Egress(), url)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://example.com/", "Use https"),
        ("ftp://example.com/", "begins with https"),
        ("file:///etc/passwd", "begins with https"),
        ("gopher://127.0.0.1:6379/_FLUSHALL", "begins with https"),
        ("//example.com/", "begins with https"),
        ("https:///path", "begins with https"),
        ("https://0177.0.0.1/", "no URL"),
        ("https://example.com:99999/", "no port 99999"),
        ("https://user:secret@example.com/", "user name and password"),
    ],
)
def test_url_that_is_refused_before_anything_is_resolved(url: str, words: str) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        raise AssertionError("nothing to resolve")

    with pytest.raises(DestinationRefused, match=words):
        asyncio.run(Egress(resolve=resolve).admit(url))


def test_public_host_is_admitted_with_all_its_addresses() -> None:
    addresses = [PUBLIC, "2606:4700::1111"]
    assert asyncio.run(Egress(resolve=names(addresses)).admit("https://example.com/")) == addresses


def test_one_private_address_among_public_ones_is_enough_to_refuse() -> None:
    with pytest.raises(DestinationRefused):
        asyncio.run(Egress(resolve=names([PUBLIC, "127.0.0.1"])).admit("https://example.com/"))


@pytest.mark.parametrize("host", ["nowhere.invalid", "a" * 70 + ".com"])
def test_name_without_address(host: str) -> None:
    with pytest.raises(DestinationUnresolved, match="no address"):
        asyncio.run(Egress().admit(f"https://{host}/"))


@pytest.mark.fault_case(35)
def test_name_that_turns_private_after_it_was_admitted_is_refused() -> None:
    egress = Egress(resolve=names(PUBLIC, "127.0.0.1"))
    asyncio.run(egress.admit("https://rebinding.test/"))
    with pytest.raises(DestinationRefused):
        get(egress, "https://rebinding.test/")


@pytest.mark.fault_case(35)
def test_connection_goes_to_the_address_that_was_checked(port: int) -> None:
    """Nobody but the one resolver is asked: `rebinding.test` is a name that only it knows."""
    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    url = f"http://rebinding.test:{port}/"
    assert get(Egress(["rebinding.test"], resolve=resolve), url) == (200, f"rebinding.test:{port}")
    assert asked == ["rebinding.test"]


def test_next_address_is_tried_when_one_does_not_take_the_connection(port: int) -> None:
    egress = Egress(["hooks.test"], resolve=names(["127.0.0.2", "::1", "127.0.0.1"]))
    assert get(egress, f"http://hooks.test:{port}/")[0] == 200


def test_host_that_does_not_answer_is_a_transport_error(port: int) -> None:
    egress = Egress(["hooks.test"], resolve=names("127.0.0.2"))
    with pytest.raises(httpx2.ConnectError):
        get(egress, f"http://hooks.test:{port}/")


@pytest.mark.parametrize("allowed", ["hooks.test", "Hooks.Test"])
def test_allowed_host_may_be_private_and_without_tls_and_no_other(port: int, allowed: str) -> None:
    egress = Egress([allowed], resolve=names("127.0.0.1"))
    assert get(egress, f"http://hooks.test:{port}/")[0] == 200
    with pytest.raises(DestinationRefused):
        get(egress, f"http://127.0.0.1:{port}/")


def test_redirect_is_not_followed(port: int) -> None:
    assert get(Egress(["127.0.0.1"]), f"http://127.0.0.1:{port}/away")[0] == 302


def test_proxy_of_the_environment_is_not_used(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert get(Egress(["127.0.0.1"]), f"http://127.0.0.1:{port}/")[0] == 200


def test_host_that_drips_is_cut_off(port: int) -> None:
    with pytest.raises(TimeoutError):
        get(Egress(["127.0.0.1"]), f"http://127.0.0.1:{port}/slow", seconds=0.5)


@pytest.fixture
def certified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ssl.SSLContext]:
    """Makes a server's TLS with a certificate for a name, which the client trusts."""

    def certify(name: str) -> ssl.SSLContext:
        key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
        subject = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
        files = ["-keyout", str(key), "-out", str(certificate)]
        kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
        subprocess.run(["openssl", "req", "-x509", *kind, *subject, *files], check=True, capture_output=True)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate, key)
        return tls

    return certify


def test_tls_is_checked_against_the_name_not_the_address(
    certified: Callable[[str], ssl.SSLContext],
) -> None:
    with serving(certified("hooks.test")) as port:
        egress = Egress(["hooks.test", "other.test"], resolve=names("127.0.0.1"))
        assert get(egress, f"https://hooks.test:{port}/") == (200, f"hooks.test:{port}")
        with pytest.raises(httpx2.ConnectError, match="certificate"):
            get(egress, f"https://other.test:{port}/")

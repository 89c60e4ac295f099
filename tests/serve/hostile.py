"""What a stranger may send, as a table: a name, and what goes over the wire. None of it may be answered by a 5xx."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

from tests.serve.conftest import encoded, painted

Headers = dict[str, str]


LENIENT = ("cut at", "zeroed")  # damage that a decoder may not notice: the end of a file, or what pixels are


class Case(NamedTuple):
    """A request. `statuses` are those that it may be answered with; none: any 4xx."""

    name: str
    content: bytes
    headers: Headers
    method: str = "POST"
    path: str = "/v1/translate"
    statuses: tuple[int, ...] = ()


def chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int = 8, colour: int = 2, data: bytes | None = None, *extra: bytes) -> bytes:
    """A PNG with a header that may lie about the data."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000) if data is None else data
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(extra) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def saved(mode: str, kind: str = "PNG", size: tuple[int, int] = (32, 32), **options: Any) -> bytes:
    """A sound picture in a mode."""
    return encoded(Image.new(mode, size), kind, **options)


def wrong_pictures() -> Iterator[tuple[str, bytes]]:
    """Bytes that are no acceptable picture."""
    good = {kind: encoded(painted(), kind) for kind in ("PNG", "JPEG", "WEBP", "BMP")}
    yield "empty", b""
    yield "one byte", b"\0"
    yield "text", b"hello"
    yield "zeros", bytes(5000)
    yield "random", np.random.default_rng(0).bytes(5000)
    yield "html", b"<!doctype html><html><script>alert(1)</script></html>"
    yield "svg", b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"
    yield "svg with bom", b"\xef\xbb\xbf<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>"
    yield "xml bomb", b"<!DOCTYPE l [<!ENTITY a 'ha'><!ENTITY b '&a;&a;&a;'>]><svg>&b;</svg>"
    yield "pdf", b"%PDF-1.7\n%\xe2\xe3\n1 0 obj<<>>endobj"
    yield "postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n(/etc/passwd) (r) file\n"
    yield "zip", b"PK\x03\x04" + bytes(200)
    yield "gzip", b"\x1f\x8b\x08" + bytes(100)
    yield "elf", b"\x7fELF\x02\x01\x01" + bytes(100)
    yield "pickle", b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."
    yield "mp4", b"\0\0\0\x18ftypmp42" + bytes(100)
    yield "avif", b"\0\0\0\x1cftypavif" + bytes(100)
    yield "heic", b"\0\0\0\x18ftypheic" + bytes(100)
    for kind in ("GIF", "TIFF", "PPM", "ICO", "TGA", "PCX", "SGI", "DDS"):
        yield f"a sound {kind}", saved("RGB" if kind != "GIF" else "P", kind)
    for kind, content in good.items():
        for part in (1, 4, 12, 30, len(content) // 2, len(content) - (200 if kind == "BMP" else 12)):
            yield f"{kind} cut at {part}", content[:part]
        yield f"{kind} with its middle zeroed", content[:40] + bytes(len(content) - 80) + content[-40:]
        yield f"{kind} after text", b"GET / HTTP/1.1\r\n\r\n" + content
    signatures = {"PNG": 8, "JPEG": 3, "WEBP": 12, "BMP": 2}
    for kind, length in signatures.items():
        for other, content in good.items():
            if other != kind:
                yield f"{other} that begins as {kind}", good[kind][:length] + content[length:]
    for width, height in (
        (2**31 - 1, 2**31 - 1),
        (100_000, 100_000),
        (20_000, 1),
        (1, 20_000),
        (65_535, 65_535),
        (0, 0),
        (0, 32),
    ):
        yield f"PNG that says {width} x {height}", png(width, height)
    for width, height in ((1, 1), (15, 15), (16, 400), (400, 16), (300, 300), (2000, 2000)):
        yield f"a sound PNG of {width} x {height}", encoded(Image.new("RGB", (width, height)))
    yield "PNG bomb", png(40_000, 40_000, data=zlib.compress(bytes(10_000_000), 9))
    yield "PNG of one row, with data for more", png(32, 32, data=zlib.compress(bytes(40)))
    yield "PNG of depth 3", png(32, 32, depth=3)
    yield "PNG of colour type 7", png(32, 32, colour=7)
    yield "PNG with data that is no zlib", png(32, 32, data=b"no zlib at all")
    yield "PNG without data", png(32, 32, data=b"")
    bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(40_000_000), 9))
    yield "PNG with a compressed text bomb", png(32, 32, 8, 2, None, bomb)
    yield "PNG with a profile bomb", png(32, 32, 8, 2, None, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(40_000_000), 9)))
    yield "PNG palette without a palette", png(32, 32, colour=3)
    yield "PNG with a wrong checksum", encoded(painted())[:29] + b"\0\0\0\0" + encoded(painted())[33:]
    yield "animated PNG", encoded(painted(), "PNG", save_all=True, append_images=[painted(seed=1)])
    yield "animated WEBP", encoded(painted(), "WEBP", save_all=True, append_images=[painted(seed=1)])
    yield "BMP with a negative width", b"BM" + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54, 40, -32, 32, 1, 24, 0, 0, 0, 0, 0, 0)
    yield "BMP of 2^31", b"BM" + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0)
    yield (
        "BMP run-length that overruns",
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54, 40, 64, 64, 1, 8, 1, 0, 0, 0, 0, 0) + b"\xff\xff" * 3000,
    )
    yield "JPEG of 65500 x 65500", good["JPEG"].replace(struct.pack(">HH", 40, 48), struct.pack(">HH", 65500, 65500), 1)
    yield "JPEG of no height", good["JPEG"].replace(struct.pack(">HH", 40, 48), struct.pack(">HH", 0, 48), 1)
    yield "WEBP with a lying size", good["WEBP"][:4] + struct.pack("<I", 2**32 - 1) + good["WEBP"][8:30]


def odd_pictures() -> Iterator[tuple[str, bytes]]:
    """Pictures that are odd and sound: they may be translated."""
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "turned by EXIF", encoded(painted(), "JPEG", exif=exif)
    yield "EXIF that is none", encoded(painted(), "JPEG", exif=b"Exif\0\0" + bytes(range(200)))
    for mode in ("1", "L", "LA", "P", "RGBA", "I;16"):
        yield f"PNG in mode {mode}", saved(mode)
    for mode in ("L", "CMYK"):
        yield f"JPEG in mode {mode}", saved(mode, "JPEG")
    text = PngImagePlugin.PngInfo()
    text.add_text("../../etc/passwd", "<script>" * 100)
    yield "PNG with strange text", encoded(painted(), "PNG", pnginfo=text)
    yield "PNG and then a zip", encoded(painted()) + b"PK\x03\x04" + bytes(500)
    yield "JPEG and then html", encoded(painted(), "JPEG") + b"<html><script>alert(1)</script></html>"
    yield "progressive JPEG", encoded(painted(), "JPEG", progressive=True)
    yield "interlaced PNG", encoded(painted(), "PNG", optimize=True)
    yield "lossless WEBP", encoded(painted(), "WEBP", lossless=True)


def form(fields: list[tuple[str, str, bytes]], boundary: str = "x", end: bool = True) -> tuple[bytes, Headers]:
    """A multipart body; a field's second text is the rest of its Content-Disposition."""
    body = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{rest}\r\n\r\n'.encode("utf-8", "surrogateescape")
        + content
        + b"\r\n"
        for name, rest, content in fields
    )
    return body + (f"--{boundary}--\r\n".encode() if end else b""), {"content-type": f"multipart/form-data; boundary={boundary}"}


def picture_forms() -> Iterator[Case]:
    """Every picture, as a form and (the wrong ones) as JSON."""
    for name, content in wrong_pictures():
        body, headers = form([("image", '; filename="a.png"', content), ("target", "", b"night")])
        statuses = (200, 422) if any(word in name for word in LENIENT) else ()
        yield Case(f"form: {name}", body, headers, statuses=statuses)
        image = base64.b64encode(content).decode()
        yield as_json(f"json: {name}", {"image": image, "target": "night"})._replace(statuses=statuses)
    for name, content in odd_pictures():
        body, headers = form([("image", '; filename="a.png"', content), ("target", "", b"night")])
        yield Case(f"odd: {name}", body, headers, statuses=(200, 422))


def as_json(name: str, content: Any, path: str = "/v1/translate") -> Case:
    """A JSON request; bytes go as they are."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return Case(name, body, {"content-type": "application/json"}, path=path)


def bodies() -> Iterator[Case]:
    """JSON that is none, too deep, too long or of other types; forms that are broken."""
    image = base64.b64encode(encoded(painted())).decode()
    good = {"image": image, "target": "night"}
    for name, content in {
        "nothing": b"",
        "half": b'{"image": "',
        "a list": b"[]",
        "a number": b"1e400",
        "null": b"null",
        "not utf-8": b'{"target": "\xff\xfe"}',
        "utf-16": json.dumps(good).encode("utf-16"),
        "a deep list": b"[" * 100_000,
        "a deep object": b'{"styles":' + b'{"a":' * 20_000 + b"1" + b"}" * 20_001,
        "a deep style": b'{"target": "night", "styles": {"a": ' + b'{"mix": [' * 5000 + b"]}" * 5000 + b"}}",
        "a lone surrogate": b'{"image": "\\ud800", "target": "\\udfff"}',
        "NaN": b'{"image": "", "target": "night", "seed": NaN}',
        "a number of 5000 digits": b'{"image": "", "target": "night", "seed": ' + b"9" * 5000 + b"}",
        "a key a thousand times": b"{" + b'"image": "",' * 1000 + b'"target": "night"}',
        "ten thousand fields": json.dumps({f"f{number}": number for number in range(10_000)}).encode(),
        "a very long field name": json.dumps({"f" * 50_000: 1}).encode(),
    }.items():
        yield as_json(f"json body: {name}", content)
    for name, change in {
        "a path as target": {"target": "../../../etc/passwd"},
        "a path as image": {"image": "file:///etc/passwd"},
        "a URL as image": {"image": "http://169.254.169.254/latest/meta-data"},
        "a data URL of html": {"image": "data:text/html,<script>alert(1)</script>"},
        "an object as image": {"image": {"$ref": "#"}},
        "a list as target": {"target": ["night"]},
        "nul in target": {"target": "night\0"},
        "newlines in target": {"target": "night\r\nX-Evil: 1"},
        "a path as source": {"source": "..\\..\\windows"},
        "a seed of 2^64": {"seed": 2**64},
        "a seed below 0": {"seed": -1},
        "samples of a billion": {"samples": 10**9},
        "samples as text": {"samples": "2"},
        "a size of 0": {"size": 0},
        "a size of a billion": {"size": 10**9},
        "a size that is too large": {"size": 60_000},
        "a size that leaves nothing": {"size": 2},
        "a strength of 2": {"strength": 2},
        "strength where there is none": {"strength": 0.5},
        "an exemplar that is none": {"exemplar": "AAAA"},
        "an exemplar for a method without": {"exemplar": image},
        "attributes for a method without": {"attributes": {"Male": 1}},
        "attributes that are NaN": {"attributes": {"Male": "NaN"}},
        "attributes with a path": {"attributes": {"../../x": 1}},
        "a thousand attributes": {"attributes": {f"a{number}": 1 for number in range(1000)}},
        "styles for a method without": {"styles": {"car": {"random": 1}}},
        "styles of a thousand classes": {"styles": {f"c{number}": {"random": 1} for number in range(1000)}},
        "a style of nothing": {"styles": {"car": {}}},
        "an unknown model": {"model": "../../secret"},
        "a model named 500 letters": {"model": "m" * 500},
        "a format of php": {"format": "php"},
        "neighbours where there are none": {"neighbours": "thumbnails"},
        "a mask where there is none": {"attention_mask": True},
        "a constructor": {"__class__": "os.system", "__proto__": {}},
    }.items():
        yield as_json(f"json field: {name}", {**good, **change})
    picture = ("image", '; filename="a.png"', encoded(painted()))
    target = ("target", "", b"night")
    for name, fields in {
        "a file name with a path": [
            ("image", '; filename="../../../etc/passwd"', encoded(painted()) + b""),
            ("target", "", b"nigth"),
        ],
        "a file name of 20 kB": [("image", f'; filename="{"a" * 20_000}"', encoded(painted())), target],
        "two pictures": [picture, picture, target],
        "twenty files": [picture, target, *[(f"style.c{number}", '; filename="a"', b"x") for number in range(20)]],
        "a hundred fields": [picture, target, *[(f"f{number}", "", b"x") for number in range(100)]],
        "a file as target": [picture, ("target", '; filename="a"', b"night")],
        "a field named by bytes": [picture, target, ("\udcff\udcfe", "", b"x")],
        "a field without a name": [picture, target, ("", "", b"x")],
        "a target that is no utf-8": [picture, ("target", "", b"\xff\xfe")],
        "styles that are no JSON": [picture, target, ("styles", "", b"{")],
        "deep styles": [picture, target, ("styles", "", b"[" * 10_000)],
        "attributes that are a list": [picture, target, ("attributes", "", b"[1]")],
        "a long text field": [picture, ("target", "", b"n" * 100_000)],
        "nothing": [],
    }.items():
        yield Case(f"form: {name}", *form(fields))
    body, headers = form([picture, target])
    yield Case("form: never ends", form([picture, target], end=False)[0][:-200], headers)
    yield Case("form: another boundary", body, {"content-type": "multipart/form-data; boundary=y"})
    yield Case("form: a boundary of 5 kB", body, {"content-type": f"multipart/form-data; boundary={'y' * 5000}"})
    yield Case("form: no boundary", body, {"content-type": "multipart/form-data"})
    yield Case("form: as JSON", body, {"content-type": "application/json"})
    yield Case("form: url-encoded", b"target=night&image=x", {"content-type": "application/x-www-form-urlencoded"})


def requests() -> Iterator[Case]:
    """Paths, methods and headers."""
    for path in (
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/v1/translate/../../etc/passwd",
        "/v1/translate%00",
        "/v1//translate",
        "/.env",
        "/.git/config",
        "/v1/" + "a" * 4000,
        "/page/../../serve/args.py",
        "/page/%2e%2e/%2e%2e/args.py",
        "/docs/../v1/nothing",
        "/%ff%fe",
        "/v1/model/../../x",
    ):
        yield Case(f"path {path[:40]}", b"", {}, "GET", path, statuses=(400, 404, 414))
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "GET"):
        yield Case(f"{method} of a translation", b"", {}, method, statuses=(400, 405, 501))
    json_type = {"content-type": "application/json"}
    for name, headers in {
        "no content type": {},
        "an empty content type": {"content-type": ""},
        "a content type of 5 kB": {"content-type": "a" * 5000},
        "an image as content type": {"content-type": "image/png"},
        "a gzipped body": {**json_type, "content-encoding": "gzip"},
        "a model header of 5 kB": {**json_type, "x-recollect-model": "m" * 5000},
        "a bearer of 5 kB": {**json_type, "authorization": "Bearer " + "t" * 5000},
        "a basic authorization": {**json_type, "authorization": "Basic OnRlc3Q="},
        "a forwarded address": {**json_type, "x-forwarded-for": "8.8.8.8, 127.0.0.1", "forwarded": "for=8.8.8.8"},
        "another host": {**json_type, "host": "evil.example"},
        "an overridden method": {**json_type, "x-http-method-override": "DELETE"},
        "a time limit of Ray's": {**json_type, "x-request-timeout-seconds": "nonsense"},
        "a multiplexed model": {**json_type, "serve_multiplexed_model_id": "../../x"},
        "a cookie of 4 kB": {**json_type, "cookie": "a=" + "b" * 4000},
        "a range": {**json_type, "range": "bytes=0-18446744073709551615"},
    }.items():
        yield Case(f"header: {name}", b"{}", headers)
    for path in ("/v1/index/add", "/v1/index/remove"):
        yield as_json(f"{path} without a token", {"ids": ["../../x"]}, path)
    for body in ({}, {"image": "AAAA"}, {"image": 1}, {"k": 10**9, "image": ""}, {"where": {"Male": 2}, "image": ""}):
        yield as_json(f"retrieve {str(body)[:30]}", body, "/v1/retrieve")
    for query in ("?model=../../x", "?model=" + "m" * 500, "?model=%00", "?model=a&model=b"):
        yield Case(f"model {query[:20]}", b"", {}, "GET", f"/v1/model{query}")


CASES = (*picture_forms(), *bodies(), *requests())
assert len({case.name for case in CASES}) == len(CASES), "each case once"

"""The endpoint: predictions that equal `predict`'s, and one line with a status for whatever a stranger sends."""

import asyncio
import base64
import io
import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from fusion.serving.app import build_app
from fusion.serving.forms import Post, read_post
from fusion.serving.guard import Guard, host_name
from fusion.serving.handler import RequestHandler
from fusion.serving.limits import Limits, Refusal
from pipeline.common.errors import InputError
from pipeline.common.worker import Worker
from pipeline.posts.mvsa import LABELS
from tests.helpers import hostile_pictures
from tests.helpers.predictions import raw
from tests.helpers.processes import wait_until
from tests.helpers.requests import BOUNDARY, EQUAL, FORM, HOME, LIMITS, ask


@pytest.fixture(scope="module")
def handler(predictor):
    with RequestHandler(predictor, LIMITS, cores=2) as handler:
        yield handler


@pytest.fixture(scope="module")
def client(handler):
    with TestClient(Guard(build_app(handler, "a <run>"), LIMITS, ["box.lan"]), base_url=HOME) as client:
        yield client


def png(width, height):
    data = io.BytesIO()
    Image.new("1", (width, height)).save(data, "PNG")
    return data.getvalue()


def test_the_endpoint_answers_as_predict_does(client, predictor, drawn_posts):
    for post in drawn_posts[:3]:
        image = post.image.read_bytes()
        in_json = {"text": post.text, "image": base64.b64encode(image).decode()}
        (expected,) = predictor.predict([raw(post)])
        for response in (
            ask(client, image, post.text),
            client.post("/predict", json=in_json),
            ask(client, image, post.text, route="/explain"),
        ):
            assert response.status_code == 200
            record = response.json()
            assert record["label"] == expected.label
            assert record["flags"] == list(expected.flags)
            assert list(record["probabilities"]) == list(LABELS)
            assert record["probabilities"] == pytest.approx(expected.probabilities, abs=EQUAL)


def test_probabilities_are_not_all_alike(predictor, drawn_posts):
    """Or the comparisons above would compare nothing."""
    values = [list(one.probabilities.values()) for one in predictor.predict([raw(post) for post in drawn_posts[:5]])]
    assert np.ptp(values, axis=0).min() > 20 * EQUAL


def test_explain_adds_the_heat_map_and_the_words(client, drawn_posts):
    text = "so <script>alert(1)</script> good &amp; bad"
    record = ask(client, drawn_posts[0].image.read_bytes(), text, route="/explain").json()
    scheme, _, data = record["heat_map"].partition(",")
    assert scheme == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as drawn, Image.open(drawn_posts[0].image) as post:
        assert drawn.format == "PNG"
        assert drawn.width / drawn.height == pytest.approx(post.width / post.height, rel=0.01)
    assert [word["text"] for word in record["words"]] == text.split()
    assert max(word["weight"] for word in record["words"]) == 1
    assert {word["rank"] for word in record["words"]} >= {1, 2, 3}
    assert all(word["read"] for word in record["words"])
    assert 0 < record["text_share"] < 1
    assert record["legend"][0][1] == 0
    assert record["legend"][-1][1] == 1


def test_words_beyond_what_the_encoder_reads_are_said_to_be_so(client, drawn_posts):
    record = ask(client, drawn_posts[0].image.read_bytes(), "a b " * 100, route="/explain").json()
    assert "truncated" in record["flags"]
    read = [word["read"] for word in record["words"]]
    assert len(read) == 200
    assert read == sorted(read, reverse=True)
    assert 100 < sum(read) < 130


def test_the_server_describes_itself_and_its_types(client, predictor):
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/predict", "/explain", "/health", "/model", "/examples"}
    operation = described["paths"]["/predict"]["post"]
    assert set(operation["responses"]) == {"200", "400", "403", "408", "413", "415", "422", "503"}
    assert set(operation["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema["$ref"].endswith("/Prediction")
    assert described["components"]["schemas"]["Prediction"]["properties"]["label"]["enum"] == list(LABELS)
    assert list(described["components"]["schemas"]["Probabilities"]["properties"]) == list(LABELS)
    for closed in ("/docs", "/redoc", "/queue/join", "/upload", "/file=/etc/passwd", "/static/../../setup.cfg"):
        assert client.get(closed).status_code == 404
    assert client.get("/health").json() == {"status": "ok"}
    model = client.get("/model").json()
    assert model["run"] == "a <run>"
    assert model["labels"] == list(LABELS)
    assert model["encoders"] == {"image": predictor.image.name, "text": predictor.text.name}
    assert model["needs"] == model["reads"] == {"image": True, "text": True}
    assert model["limits"] == {"bytes": 300_000, "pixels": 1_000_000, "characters": 401, "requests": 3, "seconds": 20}
    examples = client.get("/examples").json()
    assert len(examples) == 3
    assert all(one["image"].startswith("data:image/jpeg;base64,") and one["text"] for one in examples)


def test_every_answer_forbids_the_page_to_speak_with_other_places(client):
    for response in (client.get("/"), client.get("/model"), client.get("/none"), ask(client, None, "a" * 402)):
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("route", ["/predict", "/explain"])
@pytest.mark.parametrize(
    ("image", "text", "part"),
    [
        (b"<html>", "a text", "image: not an image"),
        (b"", "a text", "image: empty file"),
        (png(71, 53)[:-30], "a text", "image: does not decode"),
        (png(1009, 1013), "a text", "over the limit of 1000000 pixels"),
        (png(7, 5), "a\0b", "text: holds a NUL"),
        (png(7, 5), b"\xff\xfe", "text: not UTF-8"),
        (png(7, 5), None, "text: none; this run needs both"),
        (png(7, 5), "", "text: none; this run needs both"),
        (png(7, 5), " \n", "text: none; this run needs both"),
        (None, "a text", "image: none; this run needs both"),
        (None, None, "neither text nor image"),
    ],
)
def test_what_is_no_post_gets_a_422_with_the_reason(route, image, text, part, client):
    response = ask(client, image, text, route=route)
    assert response.status_code == 422
    assert part in response.json()["detail"]
    assert "\n" not in response.json()["detail"]


WRONG = [
    ("application/x-www-form-urlencoded", b"text=a", 415, "send multipart/form-data"),
    ("", b"", 415, "send multipart/form-data"),
    ("text/plain; charset=\xff", b"a", 415, "send multipart/form-data"),
    ("multipart/form-data", b"a", 422, "without a boundary"),
    (FORM, b"", 422, "ends too early"),
    (FORM, b"no form", 422, "is not multipart/form-data"),
    (FORM, BOUNDARY + b'"text"\r\n\r\na\r\n', 422, "ends too early"),
    (FORM, BOUNDARY + b'"path"\r\n\r\n/etc/passwd\r\n--x--\r\n', 422, "unknown field; known are image and text"),
    (FORM, b"--x\r\nA: b\r\n\r\na\r\n--x--\r\n", 422, "unknown field"),
    (
        FORM,
        BOUNDARY + b'"image"\r\n\r\nphoto.jpg\r\n--x--\r\n',
        422,
        "image: must be a file, not a text; with curl: -F",
    ),
    (FORM, BOUNDARY + b'"text"; filename="a.txt"\r\n\r\na\r\n--x--\r\n', 422, "text: must be a field, not a file"),
    (FORM, 2 * (BOUNDARY + b'"image"; filename="a"\r\n\r\na\r\n') + b"--x--\r\n", 422, "image: given twice; send one"),
    (FORM, 2 * (BOUNDARY + b'"text"\r\n\r\na\r\n') + b"--x--\r\n", 422, "text: given twice"),
    (FORM, b"--x\r\n" + b"A: b\r\n" * 5000 + b"\r\n", 422, "is not multipart/form-data"),
    (FORM, b"--x\r\nA: " + b"b" * 100_000, 422, "is not multipart/form-data"),
    ("application/json", b"{", 422, "not JSON"),
    ("application/json", b"\xff", 422, "not UTF-8"),
    ("application/json", b"[" * 40_000, 422, "not JSON"),
    ("application/json", b"1" * 100_000, 422, "not JSON"),
    ("application/json", b"[" + b"[]," * 60_000 + b"[]]", 422, "too many parts"),
    ("application/json", b'{"text": "' + b"[{" * 150 + b'"}', 422, "image: none"),
    ("application/json", b"[]", 422, "must be an object"),
    ("application/json", b'{"text": 3}', 422, "text: must be a JSON string"),
    ("application/json", b'{"text": "a", "image": {"path": "/etc/passwd"}}', 422, "image: must be a JSON string"),
    ("application/json", b'{"text": "a", "image": "/etc/passwd"}', 422, "not an address, a path or a data URI"),
    ("application/json", b'{"text": "a", "image": "http://127.0.0.1/a.png"}', 422, "not an address, a path or a data"),
    ("application/json", b'{"text": "a", "image": "file:///etc/passwd"}', 422, "not an address, a path or a data URI"),
    ("application/json", b'{"text": "a", "image": "data:image/png;base64,AAAA"}', 422, "not an address, a path or a"),
    ("application/json", b'{"text": "a", "url": "http://127.0.0.1/"}', 422, "unknown field"),
    ("application/json", b'{"text": "a", "text": "b"}', 422, "given twice"),
    ("application/json", b'{"text": "\\ud800", "image": "AAAA"}', 422, "unpaired surrogate"),
]


@pytest.mark.parametrize(("kind", "body", "status", "part"), WRONG)
def test_a_wrong_body_gets_one_line_that_says_what_to_send(kind, body, status, part, client):
    response = client.post("/predict", content=body, headers={"content-type": kind.encode("latin-1")})
    assert response.status_code == status
    assert part in response.json()["detail"]
    assert "\n" not in response.json()["detail"]
    assert "passwd" not in response.text
    assert client.get("/predict").status_code == 405


def test_a_form_is_read_as_it_was_sent():
    part = BOUNDARY + b'"image"; filename="../../etc/passwd"\r\nContent-Type: image/png\r\n\r\n\x00\r\n--\xff\r\n'
    post = read_post(FORM, part + BOUNDARY + b'"text"\r\n\r\n\xc3\xbc \r\n b\r\n--x--\r\n')
    assert post == Post("\u00fc \r\n b", b"\x00\r\n--\xff")
    nothing_chosen = BOUNDARY + b'"image"; filename=""\r\n\r\n\r\n' + BOUNDARY + b'"text"\r\n\r\na\r\n--x--\r\n'
    assert read_post(FORM, nothing_chosen) == Post("a", None)
    assert read_post("application/json", json.dumps({"text": " \t", "image": None}).encode()) == Post(None, None)
    with pytest.raises(Refusal, match="unknown field"):
        read_post(FORM, part.replace(b"image", b"Image"))
    with pytest.raises(Refusal, match="too long to read"):
        read_post(FORM, part, deadline=0)


def test_too_much_gets_a_413_announced_or_not(client):
    for text, status in (("a" * 401, 422), ("a" * 402, 413)):
        response = ask(client, None, text)
        assert response.status_code == status
    assert "over the limit of 401" in response.json()["detail"]
    too_many = bytes(LIMITS.bytes + 1)
    response = ask(client, too_many, "a")
    assert response.status_code == 413
    assert response.json()["detail"] == f"the request is over the limit of {LIMITS.bytes} bytes"

    def in_pieces():
        for start in range(0, len(too_many), 4096):
            yield too_many[start : start + 4096]

    response = client.post("/predict", content=in_pieces(), headers={"content-type": FORM})
    assert response.request.headers.get("content-length") is None
    assert response.status_code == 413


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost:80a", "", "box.lan@evil", "[::1"]
)
def test_a_name_that_is_not_ours_is_not_served(host, client):
    """DNS rebinding: a page of another site whose name is made to resolve to 127.0.0.1."""
    for route in ("/", "/model", "/predict"):
        response = client.get(route, headers={"host": host})
        assert response.status_code == 403
        assert "--allow-host" in response.json()["detail"]
        assert host == "" or host not in response.text


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:7860", "127.0.0.1:1", "[::1]:7860", "[::1]", "box.lan:7860"])
def test_loopback_and_allowed_names_are_served(host, client):
    assert client.get("/health", headers={"host": host}).status_code == 200
    assert client.get("/health", headers={"host": host, "origin": f"https://{host}"}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost", "http://127.0.0.1:1", "http://["]
)
def test_a_page_of_another_origin_is_not_served(origin, client):
    response = client.post("/predict", json={"text": "a"}, headers={"origin": origin})
    assert response.status_code == 403
    assert "another origin" in response.json()["detail"]


def test_host_names_are_read_without_their_port():
    names = {"a:1": "a", "a": "a", "[::1]:2": "[::1]", "a:": "", ":1": "", "a b": "", "a:1:2": "", "[a]b": ""}
    assert {host: host_name(host) for host in names} == names


def test_more_than_fit_in_are_sent_away_and_the_others_are_served(client, handler, drawn_posts, monkeypatch):
    image = drawn_posts[0].image.read_bytes()
    answer, waits = handler._predict_inputs, []

    def slow(inputs):
        waits.append(1)
        while len(waits) < 100:
            time.sleep(0.01)
        return answer(inputs)

    monkeypatch.setattr(handler, "_predict_inputs", slow)
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask, client, image, f"text {number}") for number in range(3)]
        wait_until(lambda: handler._in_progress == 3 and len(waits) >= 2)
        response = ask(client, image, "one too many")
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert "try again" in response.json()["detail"]
        waits.extend([1] * 100)
        assert [future.result(60).status_code for future in asked] == [200] * 3
    assert ask(client, image, "there is room again").status_code == 200
    assert handler._in_progress == 0


def test_a_request_that_takes_too_long_is_sent_away_and_its_place_is_taken_until_its_work_ends(
    predictor, drawn_posts, monkeypatch
):
    limits = Limits(seconds=0.5, requests=1)
    image, held = drawn_posts[0].image.read_bytes(), []
    with (
        RequestHandler(predictor, limits, cores=1) as handler,
        TestClient(Guard(build_app(handler, "run"), limits), base_url=HOME) as client,
    ):
        answer = handler._predict_inputs

        def slow(inputs):
            held.append(1)
            while held:
                time.sleep(0.01)
            return answer(inputs)

        monkeypatch.setattr(handler, "_decoders", Stub())
        monkeypatch.setattr(handler, "_predict_inputs", slow)
        assert "no answer within 0.5 s" in ask(client, image, "slow").json()["detail"]
        response = ask(client, image, "its work still goes on")
        assert response.status_code == 503
        assert "limit of 1 " in response.json()["detail"]
        held.clear()
        wait_until(lambda: not handler._in_progress)


class Stub:
    """Decodes nothing."""

    def decode(self, data):
        from fusion.serving.decoding import Picture

        return Picture(np.zeros((3, 224, 224), np.uint8), None)

    def end(self):
        pass

    def __exit__(self, *_):
        pass


def test_all_bodies_together_are_bounded():
    """Two of 200 kB fit into 500 kB, the third does not; a small one always does."""
    guard, said = Guard(FastAPI(), LIMITS), []

    async def upload(size, gone):
        messages = [{"type": "http.request", "body": bytes(size), "more_body": True}]

        async def receive():
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            said.append(message.get("status", message.get("body")))

        await guard({"type": "http", "headers": [(b"host", b"localhost")]}, receive, send)

    async def run():
        gone = asyncio.Event()
        waiting = [asyncio.create_task(upload(200_000, gone)) for _ in range(2)]
        await asyncio.sleep(0)
        assert guard.held == 400_000
        await upload(200_000, gone)
        assert said[0] == 503
        assert guard.held == 400_000
        small = asyncio.create_task(upload(60_000, gone))
        await asyncio.sleep(0)
        assert guard.held == 460_000
        gone.set()
        await asyncio.gather(*waiting, small)
        assert guard.held == 0

    asyncio.run(run())


def test_a_body_that_does_not_come_in_time_is_sent_away():
    limits = Limits(body_seconds=0.05)
    said = []

    async def never():
        await asyncio.sleep(60)

    async def send(message):
        said.append(message)

    async def run():
        await Guard(FastAPI(), limits)({"type": "http", "headers": [(b"host", b"localhost")]}, never, send)

    asyncio.run(run())
    assert said[0]["status"] == 408


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([(b"host", b"localhost"), (b"host", b"localhost")], 403),
        ([], 403),
        ([(b"host", b"localhost"), (b"content-length", b"3"), (b"transfer-encoding", b"chunked")], 400),
        ([(b"host", b"localhost"), (b"content-length", b"three")], 400),
        ([(b"host", b"localhost"), (b"content-encoding", b"gzip")], 415),
    ],
)
def test_ill_formed_heads_are_refused_before_the_body_is_read(headers, status):
    said = []

    async def receive():
        raise AssertionError("the body is not to be read")

    async def send(message):
        said.append(message)

    asyncio.run(Guard(FastAPI(), LIMITS)({"type": "http", "headers": headers}, receive, send))
    assert said[0]["status"] == status


def test_a_failure_of_the_server_is_one_line_without_what_was_sent(caplog):
    app = FastAPI()

    @app.get("/fail")
    def fail(secret: str) -> None:
        raise RuntimeError(secret)

    with TestClient(Guard(app, LIMITS), base_url=HOME, raise_server_exceptions=False) as client:
        response = client.get("/fail?secret=%1b%5d0%3bx")
    assert response.status_code == 500
    assert "\x1b" not in caplog.text
    assert "]0;x" not in caplog.text
    assert "RuntimeError" in caplog.text


def test_a_server_that_can_decode_no_picture_does_not_start(predictor, monkeypatch):
    with RequestHandler(predictor, Limits(), cores=1) as handler:
        monkeypatch.setattr(tempfile, "tempdir", "/" + "a" * 90)
        with pytest.raises(InputError, match="set TMPDIR"):
            handler.warm_up()


def test_leaving_ends_what_decodes_and_closes_each_worker_once(predictor, monkeypatch):
    """Two threads that close one pipe may close a file that was opened in between."""
    closed = []

    def close(worker):
        closed.append(worker.pid)
        close_worker(worker)

    close_worker = Worker.close
    monkeypatch.setattr(Worker, "close", close)
    picture = hostile_pictures.endless_jpeg()
    with RequestHandler(predictor, Limits(decode_seconds=100), cores=2) as handler:
        asked = [handler._cores.submit(handler._predict, Post("a", picture)) for _ in range(2)]
        wait_until(lambda: sum(worker._started for worker in handler._decoders._workers) == 2)
    assert all(isinstance(future.exception(), Refusal) for future in asked)
    assert len(closed) == len(set(closed)) == 2

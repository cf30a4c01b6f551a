"""Whatever a request holds, the server answers it or refuses it in one line of JSON: no failure, no traceback."""

import json
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from fusion.serving.app import build_app
from fusion.serving.guard import Guard
from fusion.serving.handler import RequestHandler
from tests.helpers.requests import BOUNDARY, FORM, HOME, LIMITS

REFUSALS = {400, 403, 404, 405, 413, 415, 422, 503}
ROUTES = st.sampled_from(["/predict", "/explain", "/health", "/model", "/examples", "/openapi.json", "/", "/page.js"])
METHODS = st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "BREW"])
LATIN = st.text(st.characters(codec="latin-1", exclude_characters="\r\n\0"), max_size=40)
HEADERS = st.dictionaries(
    st.sampled_from(["host", "origin", "content-type", "content-encoding", "accept", "cookie", "x-forwarded-host"]),
    LATIN | st.sampled_from([FORM, "application/json", "localhost", "http://localhost", "gzip", "a" * 5000]),
)


@pytest.fixture(scope="module")
def client(predictor):
    with RequestHandler(predictor, LIMITS, cores=2) as handler:
        app = Guard(build_app(handler, "run"), LIMITS)
        with TestClient(app, base_url=HOME) as client:
            yield client


def settled(response):
    """Whether a request was answered, or refused in one line."""
    if response.status_code == 200:
        return True
    if response.request.method == "HEAD":
        return response.status_code in REFUSALS
    detail = response.json()["detail"]
    return response.status_code in REFUSALS and isinstance(detail, str) and detail.isprintable()


@st.composite
def mutated(draw, whole):
    """A body with some bytes changed, cut out or put in."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 30))] = draw(st.binary(max_size=30))
    return bytes(data)


def form(image, text):
    parts = BOUNDARY + b'"image"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n' + image + b"\r\n"
    return parts + BOUNDARY + b'"text"\r\n\r\n' + text.encode("utf-8", "replace") + b"\r\n--x--\r\n"


def forms(client, image, data):
    text = data.draw(st.text(max_size=60))
    picture = data.draw(st.one_of(st.just(image), mutated(image), st.binary(max_size=200)))
    whole = form(picture, text)
    body = data.draw(st.one_of(st.just(whole), mutated(whole)))
    return client.post(
        data.draw(st.sampled_from(["/predict", "/explain"])), content=body, headers={"content-type": FORM}
    )


def records(client, data):
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    )
    record = data.draw(st.dictionaries(st.sampled_from(["text", "image", "path"]), values) | values)
    body = json.dumps(record).encode()
    body = data.draw(st.one_of(st.just(body), mutated(body)))
    return client.post("/predict", content=body, headers={"content-type": "application/json"})


def anything(client, data):
    headers = {name: value.encode("latin-1") for name, value in data.draw(HEADERS).items()}
    route = data.draw(ROUTES | st.text(max_size=40).map(lambda text: f"/{quote(text, errors='replace')}"))
    return client.request(data.draw(METHODS), route, content=data.draw(st.binary(max_size=300)), headers=headers)


def run(client, image, count):
    statuses = set()

    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def ask(data):
        kind = data.draw(st.integers(0, 2))
        ask_one = (lambda: forms(client, image, data), lambda: records(client, data), lambda: anything(client, data))
        response = ask_one[kind]()
        statuses.add(response.status_code)
        assert settled(response), (response.status_code, response.text[:300])

    ask()
    return statuses


def test_three_hundred_hostile_requests(client, drawn_posts):
    statuses = run(client, drawn_posts[0].image.read_bytes(), 300)
    assert statuses >= {200, 403, 405, 415, 422}


@pytest.mark.long
def test_five_thousand_hostile_requests(client, drawn_posts):
    run(client, drawn_posts[0].image.read_bytes(), 5_000)

"""Requests to the server, and limits that are small enough for tests."""

from fusion.serving.limits import Limits

LIMITS = Limits(bytes=300_000, pixels=1_000_000, characters=401, requests=3, held_bytes=500_000)
HOME = "http://127.0.0.1"
# Another number of threads sums in another order and moves a float16 feature by a step now and then: 1.2e-5 was seen.
EQUAL = 1e-4


def ask(client, image=None, text=None, address="", route="/predict"):
    files = {} if image is None else {"image": ("photo.jpg", image)}
    files |= {} if text is None else {"text": (None, text)}
    return client.post(f"{address}{route}", files=files or {"text": (None, "")})


FORM, BOUNDARY = "multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data; name="

"""The server's routes and their types: predictions, explanations, a description of the model, the page's files."""

import random
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field, create_model

from fusion.inference.predictor import Prediction
from fusion.report.cards import data_uri, shrunk
from fusion.report.heatmap import STOPS
from fusion.serving.handler import RequestHandler
from fusion.serving.limits import Refusal
from pipeline.demo.dataset import NAMES, write_tweet
from pipeline.demo.pictures import draw_picture

_PAGE = Path(__file__).parent / "page"
_STYLE = Path(__file__).parent.parent / "report" / "style.css"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


class Problem(BaseModel):
    """A refusal."""

    detail: str = Field(description="what is wrong with the request, in one line")


class Word(BaseModel):
    """A word of the text with its weight."""

    text: str
    weight: float = Field(ge=0, le=1, description="1 for the strongest word")
    rank: int | None = Field(description="1, 2, ... for the strongest words")
    read: bool = Field(description="false beyond what the text encoder reads")


class Health(BaseModel):
    """The server is up."""

    status: Literal["ok"] = "ok"


class Modalities(BaseModel):
    """A fact about each modality."""

    image: bool
    text: bool


class Encoders(BaseModel):
    """The names of the frozen encoders."""

    image: str
    text: str


class LimitValues(BaseModel):
    """What a request may bring."""

    bytes: int
    pixels: int
    characters: int
    requests: int
    seconds: float


class Model(BaseModel):
    """The model that this server runs."""

    run: str = Field(description="the name of the run's folder")
    labels: list[str]
    encoders: Encoders
    reads: Modalities = Field(description="the modalities that the run reads")
    needs: Modalities = Field(description="what every post must have")
    method: str = Field(description="how predictions are explained")
    limits: LimitValues


class Example(BaseModel):
    """A drawn post to try."""

    text: str
    image: str = Field(description="a data URI")


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "not a well-formed request"},
    403: {"model": Problem, "description": "a Host or an Origin that is not served"},
    408: {"model": Problem, "description": "the body did not arrive in time"},
    413: {"model": Problem, "description": "too many bytes or characters"},
    415: {"model": Problem, "description": "neither multipart/form-data nor JSON"},
    422: {"model": Problem, "description": "no picture, no text that can be read, or what the run needs is missing"},
    503: {"model": Problem, "description": "too many requests at once, or no answer in time; see Retry-After"},
}
_KINDS = "JPEG, PNG, GIF, BMP, WebP or TIFF"
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "image": {"type": "string", "format": "binary", "description": _KINDS},
                        "text": {"type": "string", "description": "the post's text; a blank text counts as no text"},
                    },
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "image": {"type": ["string", "null"], "format": "byte", "description": f"base64: {_KINDS}"},
                        "text": {"type": ["string", "null"]},
                    },
                }
            },
        },
    }
}


def build_app(handler: RequestHandler, name: str) -> FastAPI:
    """The routes over a handler; `name` is what the run is called. Described in /openapi.json."""
    # FastAPI's own documentation pages load scripts from elsewhere, so there are none.
    app = FastAPI(
        title="mscf", description="Classifies posts of image and text.", docs_url=None, redoc_url=None, version="1"
    )
    labels = tuple(handler.predictor.run.metadata["labels"])
    prediction, explanation = _response_types(labels)
    examples = _examples() if handler.reads()["image"] else []

    @app.post("/predict", response_model=prediction, responses=_PROBLEMS, openapi_extra=_BODY)
    async def predict(request: Request) -> Any:
        """Class probabilities of one post. Both fields are needed, unless the run was trained to do without one."""
        return _record(await handler.predict(*await _sent(request)))

    @app.post("/explain", response_model=explanation, responses=_PROBLEMS, openapi_extra=_BODY)
    async def explain(request: Request) -> Any:
        """Class probabilities of one post, the picture under its heat map, and the weight of each word."""
        explained = await handler.explain(*await _sent(request))
        share = explained.explanation.text_share
        more = {"method": handler.method, "heat_map": explained.heat_map, "words": explained.words, "text_share": share}
        return {**_record(explained.prediction), **more, "legend": [[f"rgb{colour}", at] for at, colour in STOPS]}

    @app.get("/health")
    async def health() -> Health:
        """Whether the server is up."""
        return Health()

    @app.get("/model")
    async def model() -> Model:
        """The run, its labels, its encoders, what a post must have, and the limits."""
        predictor = handler.predictor
        return Model(
            run=name,
            labels=list(labels),
            encoders=Encoders(image=predictor.image.name, text=predictor.text.name),
            reads=Modalities(**handler.reads()),
            needs=Modalities(**handler.needs()),
            method=handler.method,
            limits=LimitValues.model_validate(vars(handler.limits)),
        )

    @app.get("/examples")
    async def drawn_examples() -> list[Example]:
        """Three drawn posts for the page."""
        return examples

    _serve_page(app)

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> JSONResponse:
        return JSONResponse({"detail": refusal.detail}, refusal.status, refusal.headers)

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> JSONResponse:
        return JSONResponse({"detail": "the server failed; its log says where"}, 500)

    return app


async def _sent(request: Request) -> tuple[str, bytes]:
    return request.headers.get("content-type", ""), await request.body()


def _record(prediction: Prediction) -> dict[str, Any]:
    return {
        "label": prediction.label,
        "probabilities": prediction.probabilities,
        "flags": list(prediction.flags),
    }


def _response_types(labels: tuple[str, ...]) -> tuple[type[BaseModel], type[BaseModel]]:
    """The types of responses, with the run's label names."""
    probability = Annotated[float, Field(ge=0, le=1)]
    fields: dict[str, Any] = {f"class_{i}": (probability, Field(alias=label)) for i, label in enumerate(labels)}
    probabilities = create_model("Probabilities", __doc__="Each class's probability.", **fields)
    flags = Field(
        description="no_text, no_image, truncated (longer than the encoder reads), rotated, animated, converted"
    )
    prediction = create_model(
        "Prediction",
        __doc__="The class with the highest probability, all of them, and what a reader should know of the post.",
        label=(Literal[labels], ...),  # type: ignore[arg-type]
        probabilities=(probabilities, ...),
        flags=(list[str], flags),
    )
    explanation = create_model(
        "Explanation",
        __base__=prediction,
        __doc__="A prediction with what it rests on.",
        method=(str, Field(description="how it is explained")),
        heat_map=(str | None, Field(description="PNG in a data URI: the picture under its heat map")),
        legend=(list[tuple[str, float]], Field(description="the heat map's colours, from the lowest weight, 0, to 1")),
        words=(list[Word], ...),
        text_share=(float | None, Field(description="how much of all weight the text has")),
    )
    return prediction, explanation


def _serve_page(app: FastAPI) -> None:
    """The page's files, read once: no request names a path."""
    files = {f"/{path.name}": path for path in sorted(_PAGE.iterdir()) if path.suffix in _TYPES}
    files |= {"/": _PAGE / "index.html", "/style.css": _STYLE}
    for route, path in files.items():
        response = _static(path.read_bytes(), f"{_TYPES[path.suffix]}; charset=utf-8")
        app.add_api_route(route, response, methods=["GET", "HEAD"], include_in_schema=False)


def _static(content: bytes, kind: str) -> Any:
    async def file() -> Response:
        return Response(content, media_type=kind)

    return file


def _examples() -> list[Example]:
    """A drawn post of each mood."""
    examples = []
    for mood, name in NAMES.items():
        draw = random.Random(f"example {name}")
        picture = draw_picture(draw, mood).image
        examples.append(Example(text=write_tweet(draw, mood), image=data_uri(shrunk(picture))))
    return examples

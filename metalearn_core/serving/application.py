"""The HTTP application: predict, adapt, and what operators ask for (health, metrics, the OpenAPI document)."""

import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import anyio.to_thread
from fastapi import FastAPI, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from metalearn_core.errors import MetalearnError, UsageError
from metalearn_core.model import Classifier, Model, load_classifier
from metalearn_core.resources import available_cores
from metalearn_core.serving.classifiers import Classifiers, token_of
from metalearn_core.serving.episodes import (
    MOST_EPISODES,
    Episode,
    EpisodePrediction,
    Query,
    Reader,
    Support,
    adapted,
    answer,
    answered,
)
from metalearn_core.serving.limits import Application, Limited, Limits, Message, Receive, Scope, Send
from metalearn_core.version import package_version

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Episodes(BaseModel):
    """Episodes that have nothing to do with one another."""

    inputs: Annotated[list[Episode], Field(min_length=1, max_length=MOST_EPISODES, fail_fast=True)]


class EpisodePredictions(BaseModel):
    """A prediction for each episode, in their order."""

    predictions: list[EpisodePrediction]


class SupportSet(BaseModel):
    """A few labelled examples of each class."""

    support: Support


class Queries(BaseModel):
    """Examples to be labelled."""

    query: Query


class Adapted(BaseModel):
    """A classifier that the server keeps, and the token that is its name."""

    token: str
    classes: list[str]


class Problem(BaseModel):
    """What is wrong, in one line."""

    error: str


class ModelDescription(BaseModel):
    """The model that is served."""

    model: str
    learner: str
    bundle_digest: str
    way: int | None = Field(description="the number of classes that it takes; null: any")
    modality: str
    example_shape: list[int]
    preprocessing: str


class Health(BaseModel):
    """That the server answers, and with which model."""

    status: str
    model: ModelDescription
    adapted: Adapted | None = Field(description="to the support set that the bundle has in it; null: it has none")


def make_application(model: Model, name: str, limits: Limits | None = None) -> FastAPI:
    """Return the application that serves a model.

    Args:
        model: loaded.
        name: its address, for people.
        limits: what a request may cost.

    A server sets `state.ends_at`, by the monotonic clock, when it is to end: work that goes on for longer is given up.
    A bundle's own support set is adapted to from the start.
    """
    limits = limits or Limits()
    described = _described(model, name)
    own = {token_of(model.digest): load_classifier(model)} if model.has_support else {}
    own_adapted = next((_adapted(token, classifier) for token, classifier in own.items()), None)
    classifiers = Classifiers(limits.classifier_bytes, own)
    metrics = _Metrics(classifiers)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = available_cores()
        yield

    problems: dict[int | str, dict[str, Any]] = {status: {"model": Problem} for status in (400, 408, 413, 429, 503)}
    problems["4XX"] = {"model": Problem, "description": "What else is wrong with a request"}  # or a 422 is announced
    application = FastAPI(
        title="metalearn",
        summary=f"Few-shot classification by {described.learner}: a few labelled examples in, labels of others out.",
        version=package_version(),
        lifespan=lifespan,
        responses=problems,
    )
    application.state.ends_at = math.inf

    @application.post("/predict")
    @application.post("/invocations", include_in_schema=False)  # MLflow's name for it
    def predict(episodes: Episodes) -> EpisodePredictions:
        """Adapt to the support set of each episode, and label its queries."""
        return EpisodePredictions(predictions=answer(model, episodes.inputs, _watch(application, limits.work_seconds)))

    @application.post("/adapt")
    def adapt(support_set: SupportSet) -> Adapted:
        """Adapt to a support set once; ask with the token as often as needed, until others need the classifier's room.

        The same support set has one token.
        """
        classifier = adapted(model, Reader(model), support_set.support, "")
        token = token_of(model.digest, support_set.support)
        classifiers.keep(token, classifier)
        return _adapted(token, classifier)

    @application.post("/adapted/{token}/predict", responses={404: {"model": Problem}})
    def predict_adapted(token: Annotated[str, Path(max_length=64)], queries: Queries) -> EpisodePrediction:
        """Label queries with a classifier that was adapted before."""
        return answered(_found(classifiers, token), Reader(model), queries.query, "")

    @application.get("/health")
    async def health() -> Health:
        """Say that the server answers, and which model it serves."""
        return Health(status="ok", model=described, adapted=own_adapted)

    @application.get("/ping", include_in_schema=False)
    async def ping() -> Response:
        return Response("\n")

    @application.get("/metrics", include_in_schema=False)
    async def exposition() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @application.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return _problem(400, _complaint(error))

    @application.exception_handler(MetalearnError)
    async def refused(_: Request, error: MetalearnError) -> JSONResponse:
        return _problem(400 if isinstance(error, UsageError) else 500, " ".join(str(error).split()))

    @application.exception_handler(_UnknownTokenError)
    async def unknown(_: Request, error: _UnknownTokenError) -> JSONResponse:
        return _problem(404, str(error))

    @application.exception_handler(_GivenUpError)
    async def given_up(_: Request, error: _GivenUpError) -> JSONResponse:
        return _problem(503, str(error))

    @application.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return _problem(500, f"this is a bug: {type(error).__name__}")

    @application.exception_handler(HTTPException)
    async def unusual(request: Request, error: HTTPException) -> JSONResponse:
        path, method = request.url.path, request.method
        texts = {404: f"there is no {path}: see /docs", 405: f"{path} takes no {method}"}
        return _problem(error.status_code, texts.get(error.status_code, error.detail))

    application.add_middleware(Limited, limits=limits)
    application.add_middleware(metrics.measured)  # the last one is the outermost: what the limits refuse is counted too
    return application


class _UnknownTokenError(MetalearnError):
    """The classifier of a token is not there."""


class _GivenUpError(MetalearnError):
    """A request would be worked on for too long."""


def _watch(application: FastAPI, seconds: float) -> Callable[[], None]:
    """Return what raises as soon as a request has been worked on for so long, or the server is to end."""
    latest = time.monotonic() + seconds

    def go_on() -> None:
        now = time.monotonic()
        if now > application.state.ends_at:
            raise _GivenUpError("the server is ending: send the request again")
        if now > latest:
            raise _GivenUpError(f"the answer takes longer than {seconds:g} seconds: send fewer episodes at once")

    return go_on


def _adapted(token: str, classifier: Classifier) -> Adapted:
    return Adapted(token=token, classes=[str(label) for label in classifier.classes])


def _found(classifiers: Classifiers, token: str) -> Classifier:
    classifier = classifiers.find(token)
    if classifier is None:
        raise _UnknownTokenError(
            "there is no classifier with this token (any more): send its support set to /adapt again"
        )
    return classifier


def _described(model: Model, name: str) -> ModelDescription:
    description = model.description
    return ModelDescription(
        model=name,
        learner=description.learner,
        bundle_digest=model.digest,
        way=description.way,
        modality=description.input.modality,
        example_shape=list(description.input.example_shape),
        preprocessing=description.preprocessing,
    )


def _complaint(error: RequestValidationError) -> str:
    """Return pydantic's first complaint as one line that names the field."""
    first = error.errors()[0]
    place = ""
    for part in first["loc"][1:]:
        place += f"[{part}]" if isinstance(part, int) else f".{part}"
    text = str(first["msg"]).lower()
    if first["type"] == "json_invalid":
        return f"the body is not JSON: {first.get('ctx', {}).get('error', text)}".lower()
    return f"{place.lstrip('.') or 'the body'}: {text}"


def _problem(status: int, error: str) -> JSONResponse:
    return JSONResponse({"error": error}, status)


class _Metrics:
    """What Prometheus asks for: requests by path and status, how long they took, and classifiers that are kept."""

    def __init__(self, classifiers: Classifiers) -> None:
        self._registry = CollectorRegistry()
        labels = ("path", "status")
        self._requests = Counter("metalearn_requests", "Requests answered.", labels, registry=self._registry)
        self._seconds = Histogram(
            "metalearn_request_seconds",
            "From the arrival of a request's head to its answer.",
            ("path",),
            registry=self._registry,
            buckets=_SECONDS,
        )
        kept = Gauge("metalearn_adapted_classifiers", "Adapted classifiers that are kept.", registry=self._registry)
        kept.set_function(lambda: len(classifiers))

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def measured(self, application: Application) -> Application:
        """Return the application with its answers counted."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            started = time.perf_counter()

            async def sent(message: Message) -> None:
                if message["type"] == "http.response.start":
                    path = getattr(scope.get("route"), "path", "other")
                    self._requests.labels(path, str(message["status"])).inc()
                    self._seconds.labels(path).observe(time.perf_counter() - started)
                await send(message)

            try:
                await application(scope, receive, sent)
            except Exception:
                self._requests.labels("other", "500").inc()  # it is answered outside
                raise

        return counted

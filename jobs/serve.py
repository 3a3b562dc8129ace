"""Answers over HTTP with models:/NAME@champion on Ray Serve and follows the alias; does not import raydistill.

    pip install 'ray[serve]' mlflow torch transformers pillow
    export MLFLOW_TRACKING_URI=sqlite:///raydistill-storage/mlflow.db
    serve run serve:app name=bbc-news                   # on a cluster add --working-dir .
    curl 127.0.0.1:8000 -d '{"texts": ["Shares fall again"]}'
    {"version":1,"results":[{"label":"business","score":0.89}]}

It listens on 127.0.0.1; started from a Serve config file, on all interfaces, unless that says http_options: {host: …}.
A row of a model of pairs is two texts: {"texts": [["premise", "hypothesis"]]}; a model of pictures is sent one as it
is, --data-binary @picture.jpg. A bad request gets {"detail": "why"}.
"""

import asyncio
import base64
import functools
import io
import logging
import os
import re
import threading
import time
from tempfile import TemporaryDirectory

import mlflow
import pandas
from fastapi import FastAPI, HTTPException, Request
from PIL import Image
from pydantic import BaseModel, Field, ValidationError
from ray import serve

MAX_BYTES, MAX_PICTURE = 2**18, 2**24  # of a request; 64 texts of 512 tokens are 200 kB
PIXEL = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///ywAAAAAAQABAAACAUwAOw==")  # a picture to try a model on
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # 7 take minutes, and we ask again anyway
plain = functools.partial(re.sub, r"://[^/\s]*@", "://")  # MLflow's errors hold the store's address, with its password
log = logging.getLogger("ray.serve")
api = FastAPI(openapi_url=None)


class Settings(BaseModel, extra="forbid"):  # of `serve run serve:app name=…`, or args: in a Serve config file
    name: str
    alias: str = "champion"
    poll_seconds: float = Field(5, gt=0)


class Query(BaseModel, extra="forbid"):
    texts: list[str | tuple[str, str]] = Field(min_length=1, max_length=64)


def find_version(settings: Settings) -> int:
    try:
        return int(mlflow.MlflowClient().get_model_version_by_alias(settings.name, settings.alias).version)
    except mlflow.MlflowException as error:
        name = f"models:/{settings.name}@{settings.alias}"
        raise ValueError(f"{name}: {plain(str(error))}. Does MLFLOW_TRACKING_URI name its store?") from None


@serve.deployment(max_ongoing_requests=64, max_queued_requests=256)  # num_replicas=2, ray_actor_options={"num_gpus": 1}
@serve.ingress(api)
class Champion:
    def __init__(self, settings: Settings, tracking_uri: str) -> None:
        mlflow.set_tracking_uri(tracking_uri)
        self.settings, self.serving, self.reads_pictures = settings, (0, None, []), False
        self.update()
        threading.Thread(target=self.follow, daemon=True).start()

    def update(self) -> None:
        """Load the version that the alias names now; the old one answers until the new one has scored a row."""
        version = find_version(self.settings)
        if version == self.serving[0]:
            return
        with TemporaryDirectory() as folder:
            model = mlflow.pyfunc.load_model(f"models:/{self.settings.name}/{version}", dst_path=folder)
        schema = model.metadata.get_input_schema()
        columns, kind = schema.input_names(), schema.input_types()[0].name  # [0] or ["text", "text_pair"]
        model.predict(pandas.DataFrame([[PIXEL if kind == "binary" else "a"] * len(columns)], columns=columns))
        self.reads_pictures = kind == "binary"
        self.serving = version, model, columns  # at once: requests are answered meanwhile
        log.info(f"{self.settings.name} version {version} answers")

    def follow(self) -> None:
        while True:
            time.sleep(self.settings.poll_seconds)
            try:
                self.update()
            except Exception as error:  # no registry, no alias, a broken version: what works stays
                log.warning(f"{self.settings.name} version {self.serving[0]} stays: {plain(repr(error))}")

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.01)
    async def score(self, requests: list[list]) -> list[dict]:
        version, model, columns = self.serving
        rows = pandas.DataFrame([row for rows in requests for row in rows], columns=columns)
        results = iter(await asyncio.to_thread(model.predict, rows))
        return [{"version": version, "results": [next(results) for _ in rows]} for rows in requests]

    async def picture(self, body: bytes) -> dict:
        try:
            await asyncio.to_thread(lambda: Image.open(io.BytesIO(body)).load())
        except Exception as error:  # each of Pillow's formats has its own errors
            raise HTTPException(422, f"The body is no picture that can be read: {type(error).__name__}.") from None
        return await self.score([[body]])

    @api.get("/")
    async def about(self) -> dict:
        return {"name": self.settings.name, "version": self.serving[0]}

    @api.post("/")
    async def answer(self, request: Request) -> dict:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > (most := MAX_PICTURE if self.reads_pictures else MAX_BYTES):
                raise HTTPException(413, f"The request has more than {most} bytes.")
        if self.reads_pictures:
            return await self.picture(body)
        try:
            rows = [[row] if isinstance(row, str) else row for row in Query.model_validate_json(body).texts]
        except ValidationError as error:
            first = error.errors()[0]
            raise HTTPException(422, f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}") from None
        if any(len(row) != len(self.serving[2]) for row in rows):
            raise HTTPException(422, f"A row of this model is {len(self.serving[2])} text(s).")
        return await self.score(rows)


def app(settings: Settings) -> serve.Application:
    find_version(settings)  # a wrong name ends here, with one error, and not in replicas that are started again
    here = f"sqlite:///{os.getcwd()}/"  # of a relative path: replicas run in another folder
    return Champion.bind(settings, re.sub("^sqlite:///(?=[^/])", here, mlflow.get_tracking_uri()))

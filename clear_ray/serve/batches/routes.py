"""The routes of files and batches: who asks is admitted, and `service` does the rest."""

from typing import Any
from urllib.parse import quote

from fastapi import APIRouter
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from clear_ray.serve.batches.service import BatchService
from clear_ray.serve.bodies import check_json, json_of, unpacked
from clear_ray.serve.errors import ApiError

# Functions, not methods of the deployment: Serve gives routes of functions no replica, so they ask for it.
routes = APIRouter()
_MOST_BODY_BYTES = 100_000


@routes.post("/v1/files")
async def upload_file(request: Request) -> Response:
    """Take a file in."""
    owner, service = _admitted(request)
    content_type = request.headers.get("content-type", "")
    return JSONResponse(await service.upload(owner, unpacked(request), content_type))


@routes.get("/v1/files")
async def list_files(request: Request) -> Response:
    """List files."""
    owner, service = _admitted(request)
    return JSONResponse(await service.list_files(owner, request.query_params))


@routes.get("/v1/files/{file_id}")
async def retrieve_file(request: Request, file_id: str) -> Response:
    """Return what is known of a file."""
    owner, service = _admitted(request)
    return JSONResponse((await service.file(owner, file_id)).body)


@routes.get("/v1/files/{file_id}/content")
async def file_content(request: Request, file_id: str) -> Response:
    """Return a file."""
    owner, service = _admitted(request)
    file = await service.file(owner, file_id)
    headers = {"Content-Length": str(file.bytes), "Content-Disposition": _attached(file.filename)}
    return StreamingResponse(await service.content(file), media_type="application/octet-stream", headers=headers)


@routes.delete("/v1/files/{file_id}")
async def delete_file(request: Request, file_id: str) -> Response:
    """Delete a file."""
    owner, service = _admitted(request)
    return JSONResponse(await service.delete_file(owner, file_id))


@routes.post("/v1/batches")
async def create_batch(request: Request) -> Response:
    """Make a batch."""
    owner, service = _admitted(request)
    key = request.headers.get("idempotency-key")
    return JSONResponse(await service.create(owner, await _json(request), key))


@routes.get("/v1/batches")
async def list_batches(request: Request) -> Response:
    """List batches."""
    owner, service = _admitted(request)
    return JSONResponse(await service.list_batches(owner, request.query_params))


@routes.get("/v1/batches/{batch_id}")
async def retrieve_batch(request: Request, batch_id: str) -> Response:
    """Return a batch."""
    owner, service = _admitted(request)
    return JSONResponse((await service.batch(owner, batch_id)).body)


@routes.post("/v1/batches/{batch_id}/cancel")
async def cancel_batch(request: Request, batch_id: str) -> Response:
    """Have a batch end."""
    owner, service = _admitted(request)
    return JSONResponse(await service.cancel(owner, batch_id))


@routes.post("/v1/batches/{batch_id}/budget")
async def change_budget(request: Request, batch_id: str) -> Response:
    """Raise or cut the budget of a running batch."""
    owner, service = _admitted(request)
    return JSONResponse(await service.change_budget(owner, batch_id, await _json(request)))


@routes.post("/v1/batches/{batch_id}/retry")
async def retry_batch(request: Request, batch_id: str) -> Response:
    """Make a batch of what another one left."""
    owner, service = _admitted(request)
    has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    given = await _json(request) if has_body else {}
    return JSONResponse(await service.retry(owner, batch_id, given))


@routes.get("/v1/batches/{batch_id}/export")
async def export_batch(request: Request, batch_id: str) -> Response:
    """Return all rows of a batch that has ended."""
    owner, service = _admitted(request)
    stream, kind = await service.export(owner, batch_id, request.query_params)
    headers = {"Content-Disposition": f'attachment; filename="{batch_id}.{kind}"'}
    return StreamingResponse(stream, media_type="application/octet-stream", headers=headers)


def _admitted(request: Request) -> tuple[str, BatchService]:
    """Return which key asks, and what serves it.

    Raises:
        ApiError: 401; 404 where the server keeps no batches.
    """
    ingress: Any = serve.get_replica_context().servable_object
    owner: str = ingress._admit(request)
    if ingress.batches is None:
        raise ApiError(404, "This server keeps no files and batches: its configuration has no `batches.folder`.")
    return owner, ingress.batches


def _attached(filename: str) -> str:
    """Return a header by which a download is stored under its own name, in no other folder."""
    name = filename.replace("\\", "/").rpartition("/")[2] or "file"
    quoted = quote(name, safe="")
    return f'attachment; filename="{name}"' if quoted == name else f"attachment; filename*=utf-8''{quoted}"


async def _json(request: Request) -> Any:
    check_json(request)  # which a page of another origin cannot send without asking first
    body = bytearray()
    async for chunk in unpacked(request):
        body += chunk
        if len(body) > _MOST_BODY_BYTES:
            raise ApiError(413, f"The body has more than {_MOST_BODY_BYTES} bytes.", code="too_large")
    return json_of(bytes(body))

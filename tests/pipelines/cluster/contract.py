"""KFP's OpenAPI document (Swagger 2.0) as a judge of requests and answers, by jsonschema.

It is stricter than the document in one point: a field that a message does not have is refused, as KFP's server does.
"""

import json
import re
from dataclasses import dataclass
from datetime import datetime
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from jsonschema import Draft4Validator, FormatChecker

FORMATS = FormatChecker(formats=())
SCALARS = {"integer": r"-?\d+", "boolean": r"true|false", "string": r".*"}


@FORMATS.checks("date-time")
def _is_moment(value: object) -> bool:
    try:
        return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


@FORMATS.checks("int64")
def _is_int64(value: object) -> bool:
    return not isinstance(value, str) or re.fullmatch(r"-?\d{1,19}", value) is not None


class ContractError(Exception):
    """A request or an answer that the document does not have."""


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: Message
    body: bytes
    parameters: dict[str, str]
    operation: dict[str, Any]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def upload(self) -> bytes:
        """The uploaded file of a multipart form."""
        return next(iter(_form(self.headers, self.body).values())).get_payload(decode=True)


class Contract:
    def __init__(self, document: Path) -> None:
        content = json.loads(document.read_text())
        self._content = content
        self._definitions = _strict(content["definitions"])

    def request(self, method: str, target: str, headers: Message, body: bytes) -> Request:
        """Return a request that keeps to the document; raise `ContractError` for any other."""
        parts = urlsplit(target)
        operation, parameters = self._operation(method, parts.path)
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        query = dict(pairs)
        if len(query) != len(pairs):
            raise ContractError(f"{target}: a parameter is given twice")
        declared = {entry["name"]: entry for entry in operation.get("parameters", [])}
        for name, value in query.items():
            entry = declared.get(name)
            if entry is None or entry["in"] != "query":
                raise ContractError(f"{method} {parts.path} has no parameter {name!r}")
            if not re.fullmatch(SCALARS[entry["type"]], value, re.DOTALL):
                raise ContractError(f"{name}={value!r} is no {entry['type']}")
        self._check_body(operation, declared, headers, body)
        return Request(method, parts.path, query, headers, body, parameters, operation)

    def values(self, name: str) -> list[str]:
        """The values of an enumeration."""
        return list(self._definitions[name]["enum"])

    def check_answer(self, request: Request, status: int, content: Any) -> None:
        responses = request.operation["responses"]
        self._check(responses.get(str(status), responses["default"])["schema"], content, f"answer {status}")

    def _operation(self, method: str, path: str) -> tuple[dict[str, Any], dict[str, str]]:
        found = []
        for template, operations in self._content["paths"].items():
            pattern = re.sub(r"\\\{([^}]+?)\\\}", r"([^/:]+)", re.escape(template))
            match = re.fullmatch(pattern, path)
            if match and method.lower() in operations:
                names = re.findall(r"\{([^}]+)\}", template)
                values = [unquote(value) for value in match.groups()]
                found.append((len(names), operations[method.lower()], dict(zip(names, values, strict=True))))
        if not found:
            raise ContractError(f"there is no {method} {path}")
        return min(found, key=lambda entry: entry[0])[1:]

    def _check_body(self, operation: dict[str, Any], declared: dict[str, Any], headers: Message, body: bytes) -> None:
        wanted = operation.get("consumes", self._content["consumes"])
        kind = headers.get_content_type() if "content-type" in headers else None
        places = {entry["in"]: entry for entry in declared.values()}
        if not {"body", "formData"} & set(places):
            if body:
                raise ContractError(f"a body is given: {body[:80]!r}")
            return
        if kind not in wanted:
            raise ContractError(f"content type {kind}, wanted {wanted}")
        if "body" in places:
            try:
                content = json.loads(body)
            except ValueError:
                raise ContractError("the body is no JSON") from None
            self._check(places["body"]["schema"], content, "body")
        else:
            fields = {entry["name"] for entry in declared.values() if entry["in"] == "formData"}
            form = _form(headers, body)
            if set(form) != fields or not all(part.get_filename() for part in form.values()):
                raise ContractError(f"form fields {sorted(form)}, wanted the files {sorted(fields)}")

    def _check(self, schema: dict[str, Any], content: Any, what: str) -> None:
        validator = Draft4Validator({**_strict(schema), "definitions": self._definitions}, format_checker=FORMATS)
        for error in validator.iter_errors(content):
            where = "/".join(str(part) for part in error.absolute_path)
            raise ContractError(f"{what} at {where or 'its root'}: {error.message[:300]}")


def _strict(schema: Any) -> Any:
    """Return a schema in which an object has no other properties than those it names, and `$ref` stands alone."""
    if isinstance(schema, list):
        return [_strict(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    if isinstance(schema.get("$ref"), str):
        return {"allOf": [{"$ref": schema["$ref"]}]}
    strict = {name: _strict(value) for name, value in schema.items()}
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict):
        strict.setdefault("additionalProperties", False)
    return strict


def _form(headers: Message, body: bytes) -> dict[str, Message]:
    message = message_from_bytes(b"Content-Type: " + headers["content-type"].encode() + b"\r\n\r\n" + body)
    if not message.is_multipart():
        raise ContractError("the form cannot be read")
    return {part.get_param("name", header="content-disposition"): part for part in message.get_payload()}

"""The judge of the other tests: it refuses what KFP's OpenAPI document does not have."""

import json
from email.message import Message
from http.client import HTTPConnection

import pytest

from tests.pipelines.cluster.contract import Contract, ContractError, Request
from tests.pipelines.cluster.kfp_server import API, PREFIX, Cluster, KfpServer

JSON = "application/json"
RUN = {"display_name": "a run", "runtime_config": {"parameters": {"way": 5}}}


def headers(kind: str | None = JSON) -> Message:
    message = Message()
    if kind:
        message["Content-Type"] = kind
    return message


def test_a_right_request_is_taken(contract: Contract) -> None:
    request = contract.request("POST", f"{API}/runs", headers(), json.dumps(RUN).encode())
    assert request.json == RUN
    assert contract.request("GET", f"{API}/runs/7", headers(None), b"").parameters == {"run_id": "7"}
    assert contract.request("POST", f"{API}/runs/7:terminate", headers(), b"").parameters == {"run_id": "7"}


@pytest.mark.parametrize(
    ("method", "target", "kind", "body", "words"),
    [
        ("POST", "/nowhere", JSON, "{}", "there is no POST"),
        ("DELETE", "/runs", JSON, "", "there is no DELETE"),
        ("GET", "/runs?colour=red", None, "", "no parameter 'colour'"),
        ("GET", "/runs?page_size=many", None, "", "is no integer"),
        ("GET", "/runs?filter=a&filter=b", None, "", "given twice"),
        ("GET", "/runs", None, "{}", "a body is given"),
        ("POST", "/runs", "text/plain", json.dumps(RUN), "content type text/plain"),
        ("POST", "/runs", JSON, "", "no JSON"),
        ("POST", "/runs", JSON, "[]", "not of type 'object'"),
        ("POST", "/runs", JSON, json.dumps({**RUN, "name": "a run"}), "'name' was unexpected"),
        ("POST", "/runs", JSON, json.dumps({**RUN, "display_name": 7}), "7 is not of type 'string'"),
        ("POST", "/runs", JSON, json.dumps({**RUN, "state": "DONE"}), "'DONE' is not one of"),
        ("POST", "/runs", JSON, json.dumps({**RUN, "created_at": "yesterday"}), "is not a 'date-time'"),
        ("POST", "/runs", JSON, json.dumps({**RUN, "runtime_config": {"params": {}}}), "'params' was unexpected"),
        ("POST", "/recurringruns", JSON, json.dumps({"max_concurrency": 1}), "1 is not of type 'string'"),
        ("POST", "/recurringruns", JSON, json.dumps({"max_concurrency": "one"}), "is not a 'int64'"),
        ("POST", "/pipelines/upload_version?name=a", JSON, "{}", "content type"),
        ("POST", "/pipelines/upload_version?name=a", "multipart/form-data; boundary=b", "--b--\r\n", "form"),
        (
            "POST",
            "/pipelines/upload_version",
            "multipart/form-data; boundary=b",
            '--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nx\r\n--b--\r\n',
            "wanted the files ['uploadfile']",
        ),
    ],
)
def test_a_wrong_request_is_refused(
    contract: Contract, method: str, target: str, kind: str | None, body: str, words: str
) -> None:
    with pytest.raises(ContractError) as refusal:
        contract.request(method, API + target, headers(kind), body.encode())
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("status", "content", "words"),
    [
        (200, {"run_id": 7}, "7 is not of type 'string'"),
        (200, {"state": "DONE"}, "'DONE' is not one of"),
        (200, {"error": "no"}, "'no' is not of type 'object'"),
        (404, {"error": "no"}, "'error' was unexpected"),
        (404, {"code": "404"}, "'404' is not of type 'integer'"),
    ],
)
def test_a_wrong_answer_is_refused(contract: Contract, status: int, content: dict, words: str) -> None:
    request: Request = contract.request("GET", f"{API}/runs/7", headers(None), b"")
    contract.check_answer(request, 200, {"run_id": "7", "state": "SUCCEEDED"})
    contract.check_answer(request, 404, {"code": 5, "message": "no", "details": []})
    with pytest.raises(ContractError) as refusal:
        contract.check_answer(request, status, content)
    assert words in str(refusal.value)


def test_the_server_refuses_a_wrong_request_and_remembers_it(server: KfpServer, cluster: Cluster) -> None:
    connection = HTTPConnection(*server.server_address[:2], timeout=10)
    connection.request("POST", f"{PREFIX}{API}/runs", json.dumps({"nme": "x"}), {"Content-Type": JSON})
    answer = connection.getresponse()
    assert answer.status == 400
    assert "'nme' was unexpected" in json.loads(answer.read())["message"]
    connection.close()
    assert len(cluster.violations) == 1
    assert not cluster.runs
    cluster.violations.clear()


def test_the_server_remembers_a_wrong_answer(server: KfpServer, cluster: Cluster) -> None:
    cluster.runs["7"] = {"run_id": "7", "status": "fine"}
    connection = HTTPConnection(*server.server_address[:2], timeout=10)
    connection.request("GET", f"{PREFIX}{API}/runs/7")
    connection.getresponse().read()
    connection.close()
    assert "'status' was unexpected" in cluster.violations.pop()

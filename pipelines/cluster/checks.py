"""What a submission is refused for before anything is uploaded: places that a pod does not reach."""

from ipaddress import ip_address
from urllib.parse import urlsplit

from metalearn_core.data.sources.open import GLYPHS
from metalearn_core.errors import UsageError
from metalearn_core.storage.objects import Prefix, is_address
from pipelines.cluster.placement import Placement
from pipelines.config import RunConfig
from pipelines.workdir import TRACKING_VARIABLE

_OURS = {"localhost", "host.docker.internal"}


def check_places(config: RunConfig, storage: str) -> None:
    """Refuse what lies on this machine: the source, the files of a split, the storage.

    Raises:
        UsageError: one of them is no `s3://` address; a source may be `glyphs` too.
    """
    check_storage(storage)
    if config.source != GLYPHS:
        _check_address("source", config.source, f"{GLYPHS}, or ")
    for name in ("split_file", "split_from"):
        if place := getattr(config, name):
            _check_address(f"--{name.replace('_', '-')}", place)


def check_storage(storage: str) -> None:
    """Raise a UsageError where the storage is no `s3://` address, which all pods reach."""
    _check_address("--storage", storage)


def _check_address(what: str, place: str, others: str = "") -> None:
    if not is_address(place):
        raise UsageError(
            f"{what}: {place!r} is no place that the cluster's pods see: expected {others}an address like "
            "s3://bucket/some/place"
        )
    try:
        Prefix.parse(place)
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from None


def check_build(config: RunConfig) -> None:
    """Refuse options of the build that the build would refuse, without a look at the source.

    Raises:
        UsageError: an option's value is none that it may have.
    """
    from metalearn_core.data.manifest import BuildOptions
    from metalearn_core.steps.data import build_options

    if config.build_shards > 1 and config.color == "auto" and config.source != GLYPHS:
        raise UsageError("build_shards: a part of a build does not see every image: give --color grey or rgb")
    build_options("", **config.model_dump(include=set(BuildOptions.model_fields.keys() - {"split_file"})))


def check_tracking(uri: str | None, placement: Placement) -> str:
    """Return the address of the tracking server, which every pod writes to.

    Raises:
        UsageError: there is none, it is of this machine, or it holds a password, which would be in the pipeline's YAML;
            or the placement has it from elsewhere.
    """
    wanted = (
        "name the MLflow server as the cluster's pods reach it, like http://mlflow.mlops:5000 (MLFLOW_TRACKING_URI)"
    )
    if not uri:
        raise UsageError(f"--tracking-uri is not given: {wanted}")
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise UsageError(f"--tracking-uri: {wanted}") from None
    if parts.username or parts.password or "@" in uri:
        raise UsageError(
            "--tracking-uri: no user names or passwords in the address, which everybody can read in the pipeline: "
            "pods take MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD from a secret"
        )
    if parts.scheme not in {"http", "https"} or not host:
        raise UsageError(f"--tracking-uri {uri!r} is no server that the cluster's pods reach: {wanted}")
    if host in _OURS or host.endswith(".localhost") or _is_loopback(host):
        raise UsageError(f"--tracking-uri {uri!r} is this machine alone, a pod does not reach it: {wanted}")
    for option, given in (("--secret-env", placement.secret_env), ("--config-map-env", placement.config_map_env)):
        if TRACKING_VARIABLE in given:
            raise UsageError(
                f"{option} {TRACKING_VARIABLE}: every step has that of --tracking-uri: leave one of them out"
            )
    return uri.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified

"""Train one learner on several machines: what their processes find in storage, and what they leave there.

Nothing passes between the step that asks for the machines and these but through storage: an order, then a bundle with
its record, written last, or the reason why there is none.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

from metalearn_core.errors import MetalearnError, StorageError, one_line
from metalearn_core.steps.requests import TrainingOrder
from metalearn_core.steps.train_processes import knows_why, take_part
from metalearn_core.storage import copy_folder, read_json, text_digest, write_json
from metalearn_core.storage.objects import Prefix
from metalearn_core.storage.place import Place
from metalearn_core.training.termination import TrainingStoppedError

_RECORD = "record.json"
_FAILURE = "failure.json"
_BUNDLE = "bundle"


def handover(order: TrainingOrder) -> Place:
    """Return the place where an order and its outcome are handed over; it goes with the training's checkpoints.

    Raises:
        MetalearnError: it is on this machine alone.
    """
    place = Place.at(order.checkpoints) / "nodes"
    if place.prefix is None:
        raise MetalearnError(
            f"several nodes need storage that all of them reach: give an s3:// address, got {order.checkpoints}"
        )
    return place


def leave_order(order: TrainingOrder) -> str:
    """Write an order for the machines, and return its address; remove what is left of an outcome.

    The order's name is its own: that of another run, which wants the same training, stays as it is.
    """
    place = handover(order)
    content = order.model_dump_json()
    name = f"order-{text_digest(order.model_dump(mode='json'))[:16]}.json"
    assert place.prefix is not None
    place.prefix.remove([_RECORD, _FAILURE])
    place.prefix.write(name, content.encode())
    return str(place.prefix / name)


class ResultTakenError(MetalearnError):
    """The machines' work is over, and its result not there: another run may have taken it, and keep it."""


def take_result(order: TrainingOrder) -> dict[str, Any]:
    """Bring the bundle that the machines made to where the order wants it; return the record of the training.

    Raises:
        ResultTakenError: they left none, or it is there no more.
        MetalearnError: it is another one than the record says.
    """
    from metalearn_core.bundle import verify_bundle

    place = handover(order)
    try:
        place.fetch([_RECORD])
        left = read_json(place.folder / _RECORD, "record of the training")
        place.fetch(left["files"])
    except FileNotFoundError as error:
        raise ResultTakenError(f"the nodes ended, and left no {error.filename}") from None
    copy_folder(place.folder / _BUNDLE, order.bundle)
    record: dict[str, Any] = left["record"]
    if verify_bundle(order.bundle) != record["bundle_digest"]:
        raise MetalearnError(f"{place}: the bundle is not the one that was recorded")
    return record


def find_result(order: TrainingOrder) -> dict[str, Any] | None:
    """Return what `take_result` does; None where nothing whole is there."""
    if not handover(order).has(_RECORD):
        return None
    try:
        return take_result(order)
    except StorageError:
        raise
    except MetalearnError:  # of a job that somebody has cut off; it is made again
        shutil.rmtree(order.bundle, ignore_errors=True)
        return None


def reason_left(order: TrainingOrder) -> str | None:
    """Return why the machines could not go on, as the first of them said; None where none said anything."""
    place = handover(order)
    try:
        place.fetch([_FAILURE])
    except FileNotFoundError:
        return None
    return str(read_json(place.folder / _FAILURE, "reason")["reason"])


def main() -> int:
    """Train as one of the processes of one of the machines: `… ORDER`, the address of one that was left."""
    address = Prefix.parse(sys.argv[1])
    order = TrainingOrder.model_validate_json(address.parent.read(address.name))
    place = handover(order)
    bundle = place.folder / _BUNDLE

    def done(record: dict[str, Any]) -> None:
        files = [path.relative_to(place.folder).as_posix() for path in sorted(bundle.rglob("*")) if path.is_file()]
        write_json(place.folder / _RECORD, {"record": record, "files": files})
        place.replace(files, _RECORD)

    def failed(error: Exception) -> None:
        sys.stderr.write(f"{one_line(error)}\n")
        _leave_reason(place, error)

    shutil.rmtree(bundle, ignore_errors=True)
    return take_part(order.model_copy(update={"bundle": bundle}), done, failed)


def _leave_reason(place: Place, error: Exception) -> None:
    """Leave a reason unless another process has; one that is known takes the place of one that is not.

    torchrun asks processes to end where another one has failed: that tells nothing.
    """
    path = Path(place.folder) / _FAILURE
    write_json(path, {"reason": one_line(error)})
    if place.prefix and knows_why(error) and not isinstance(error, TrainingStoppedError):
        place.prefix.write(_FAILURE, path.read_bytes())
    elif place.prefix:
        place.prefix.write_new(_FAILURE, path.read_bytes())


if __name__ == "__main__":
    sys.exit(main())

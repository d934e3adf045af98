"""Adapted classifiers that wait for queries, by a token; the ones not asked for longest make room."""

import hashlib
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from metalearn_core.model import Classifier
from metalearn_core.serving.episodes import LabelledExample

_OBJECT_BYTES = 8 * 2**10  # that Python takes for a classifier beside its tensors and labels, at most


def token_of(bundle_digest: str, support: Sequence[LabelledExample] = ()) -> str:
    """Return the token of a support set for a model: the same one for the same examples, however often it is sent.

    Without examples, it is the token of the support set that the bundle has in it.
    """
    digest = hashlib.sha256(bundle_digest.encode())
    for example in support:
        digest.update(example.model_dump_json().encode())
    return digest.hexdigest()[:32]


class Classifiers:
    """Keeps classifiers by token as long as they fit into so many bytes.

    Args:
        most_bytes: of all classifiers that are kept; the last one is kept whatever its size.
        lasting: by token, classifiers that are there always, and not counted.
    """

    def __init__(self, most_bytes: int, lasting: Mapping[str, Classifier]) -> None:
        self._most_bytes, self._bytes = most_bytes, 0
        self._lasting, self._kept = dict(lasting), OrderedDict[str, Classifier]()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._lasting) + len(self._kept)

    def keep(self, token: str, classifier: Classifier) -> None:
        """Keep a classifier; those that were not asked for longest go."""
        size = _bytes_of(classifier)  # the first time it embeds the support set: nobody else has to wait for that
        with self._lock:
            if token in self._kept:
                self._bytes -= _bytes_of(self._kept.pop(token))
            self._kept[token] = classifier
            self._bytes += size
            while self._bytes > self._most_bytes and len(self._kept) > 1:
                self._bytes -= _bytes_of(self._kept.popitem(last=False)[1])

    def find(self, token: str) -> Classifier | None:
        """Return the classifier of a token, or None where it is not there (any more)."""
        with self._lock:
            if token in self._kept:
                self._kept.move_to_end(token)
            return self._lasting.get(token) or self._kept.get(token)


def _bytes_of(classifier: Classifier) -> int:
    return classifier.nbytes + sum(map(sys.getsizeof, classifier.classes)) + _OBJECT_BYTES

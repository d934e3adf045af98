"""`make deploy-check`: build every overlay, hold it against Kubernetes' schemas, and against rules of our own."""

import sys

from infra.kubernetes.build import OVERLAYS, UPGRADES, Object, build, kustomize_version
from infra.kubernetes.rules import complaints
from metalearn_core.errors import MetalearnError, one_line

VERSION = "1.37"


def schema_complaints(objects: list[Object]) -> list[str]:
    """Return what Kubernetes would refuse, unknown fields too. A kind that is no built-in one is unknown here."""
    import kubernetes_validate

    found = []
    for entry in objects:
        try:
            kubernetes_validate.validate(entry, VERSION, strict=True)
        except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
            found.append(f"{entry['kind']} {entry['metadata']['name']}: {one_line(error)[:300]}")
    return found


def main() -> int:
    """Check every overlay; return 0 where all is well."""
    wrong = 0
    sys.stdout.write(f"kustomize {kustomize_version()}, schemas of Kubernetes {VERSION}\n")
    for overlay in (*OVERLAYS, *UPGRADES):
        try:
            objects = build(overlay)
        except MetalearnError as error:
            sys.stderr.write(f"error: {error}\n")
            return 1
        found = [*schema_complaints(objects), *complaints(objects)]
        wrong += len(found)
        sys.stdout.write(f"{overlay}: {len(objects)} objects, {len(found)} complaints\n")
        for line in found:
            sys.stderr.write(f"error: overlay {overlay}: {line}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""The manifests of the team's servers, and the checks that they pass: `python -m infra.kubernetes`."""

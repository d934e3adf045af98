"""What most steps need and what takes Python seconds to import: importing this module imports it.

`forked_steps` has it imported once a run. A library that cannot be imported is left to the step that needs it, which
then says so.
"""

from contextlib import suppress
from importlib import import_module

LIBRARIES = (
    "kfp.dsl.executor_main",
    "torch",
    "mlflow",
    "mlflow.store.tracking.sqlalchemy_store",
    "pyarrow.parquet",
    "scipy.stats",
)

for name in LIBRARIES:
    with suppress(Exception):
        import_module(name)

"""One way to read and write what is kept: files and folders here, objects in a bucket of S3."""

from metalearn_core.storage.files import (
    cache_folder,
    copy_folder,
    file_digest,
    json_bytes,
    named_errors,
    new_folder,
    read_file,
    read_json,
    text_digest,
    write_bytes,
    write_json,
)

__all__ = [
    "cache_folder",
    "copy_folder",
    "file_digest",
    "json_bytes",
    "named_errors",
    "new_folder",
    "read_file",
    "read_json",
    "text_digest",
    "write_bytes",
    "write_json",
]

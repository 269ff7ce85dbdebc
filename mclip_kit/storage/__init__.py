"""Places in object storage, by their copies on this machine.

A URL is a path: that of its copy (`urls`). `place` gives the path of what a user names, `fetch` brings what is about to
be read, `send` writes back what `files` has written whole; other paths pass through all of them as they are. fsspec
reads and writes: s3:// needs the package s3fs, gs:// gcsfs, hf:// none.

ROOT/SCHEME/BUCKET/...            copies
ROOT/.versions/SCHEME/BUCKET/...  of each copy: the version of the object that it is, or that it was changed here

objects.py   what is in a bucket, and errors
copies.py    from there to here: fetch, and room for it
sending.py   from here to there: send, and what could not be sent
claims.py    who writes there
"""

from mclip_kit.storage.claims import hold
from mclip_kit.storage.copies import SIZE, fetch, make_room
from mclip_kit.storage.objects import exists, is_bucket, lacking_bucket, listing, names, place, stamps, wildcards
from mclip_kit.storage.sending import (
    announce,
    copy_object,
    forget,
    mark,
    probe,
    send,
    send_rest,
    sent_together,
)

__all__ = [
    "SIZE",
    "announce",
    "copy_object",
    "exists",
    "fetch",
    "forget",
    "hold",
    "is_bucket",
    "lacking_bucket",
    "listing",
    "make_room",
    "mark",
    "names",
    "place",
    "probe",
    "send",
    "send_rest",
    "sent_together",
    "stamps",
    "wildcards",
]

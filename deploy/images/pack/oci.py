"""Writes an OCI image layout as one tar archive. Everything in it has a fixed time, owner and order: the same input gives the same bytes."""

import gzip
import hashlib
import io
import json
import platform
import tarfile
from typing import NamedTuple

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class File(NamedTuple):
    """A file of a layer; or a link, or a folder (whose name ends in a slash)."""

    data: bytes = b""
    mode: int = 0o644
    link: str = ""


def tar(files):
    """Files in the order given, as {name: File}."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, file in files.items():
            info = tarfile.TarInfo(name)
            info.mode, info.mtime = file.mode, 0
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
            elif file.link:
                info.type, info.linkname = tarfile.SYMTYPE, file.link
            else:
                info.size = len(file.data)
            archive.addfile(info, io.BytesIO(file.data))
    return out.getvalue()


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def compact(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def write(path, reference, files, config, created="1970-01-01T00:00:00Z", by="", squeeze=True):
    """Writes the archive of an image of one layer; says the digest of its manifest."""
    unpacked = tar(files)
    layer = gzip.compress(unpacked, mtime=0) if squeeze else unpacked
    tag = reference.rsplit(":", 1)[1]
    blobs = {}

    def blob(kind, data):
        blobs[sha256(data)] = data
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": sha256(data), "size": len(data)}

    about = compact({
        "created": created,
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [sha256(unpacked)]},
        "history": [{"created": created, "created_by": by}],
    })
    manifest = blob("manifest.v1+json", compact({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob("config.v1+json", about),
        "layers": [blob("layer.v1.tar+gzip" if squeeze else "layer.v1.tar", layer)],
        "annotations": config.get("Labels", {}),
    }))
    # containerd takes the name from the first, other tools the tag from the second.
    manifest["annotations"] = {"io.containerd.image.name": reference, "org.opencontainers.image.ref.name": tag}
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [manifest]}
    whole = {"oci-layout": File(compact({"imageLayoutVersion": "1.0.0"})), "index.json": File(compact(index))}
    whole |= {"blobs/" + digest.replace(":", "/"): File(data) for digest, data in sorted(blobs.items())}
    path.write_bytes(tar(whole))
    return manifest["digest"]

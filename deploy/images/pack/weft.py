"""An image of Weft's: one program, its labels, and a user that is not root."""

from . import oci


def labels(image, workspace):
    name = image["name"]
    said = {
        "title": name,
        "description": image["about"],
        "version": workspace.version(name),
        "licenses": workspace.licence(name),
        "source": workspace.repository(name),
        "revision": workspace.revision,
    }
    return {f"org.opencontainers.image.{key}": value for key, value in said.items() if value}


def write(path, reference, program, image, workspace):
    """Writes the archive of the image with this program as /NAME; says the digest of its manifest."""
    name, user = image["name"], image["user"]
    config = {"User": f"{user}:{user}", "Entrypoint": [f"/{name}"], "Labels": labels(image, workspace)}
    files = {name: oci.File(program, 0o755)}
    return oci.write(path, reference, files, config, workspace.when, f"deploy/images/build --only {name}")

"""Writes what an image is made of as CycloneDX 1.5: the crates that are linked into its binary, with licences and checksums, and the two
libraries that are in every static Rust binary: Rust's own and the C library's."""

import json
import os
import tomllib
import uuid


def reference(crate):
    return f"pkg:cargo/{crate[0]}@{crate[1]}"


def component(crate, workspace, checksums):
    package = workspace.packages[crate]
    said = {
        "type": "library",
        "bom-ref": reference(crate),
        "name": crate[0],
        "version": crate[1],
        "purl": reference(crate),
    }
    if package["license"]:
        # Old crates write "MIT/Apache-2.0" for what SPDX calls OR.
        said["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
    if crate in checksums:
        said["hashes"] = [{"alg": "SHA-256", "content": checksums[crate]}]
    if package["repository"]:
        said["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
    return said


def toolchain(workspace):
    """What the compiler links in beside the crates."""
    libc, version = os.confstr("CS_GNU_LIBC_VERSION").split()
    return [
        {"type": "library", "bom-ref": "rust-std", "name": "rust-std", "version": workspace.rust, "licenses": [{"expression": "MIT OR Apache-2.0"}]},
        {"type": "library", "bom-ref": libc, "name": libc, "version": version, "licenses": [{"expression": "LGPL-2.1-or-later"}]},
    ]


def write(name, digest, crates, workspace):
    locked = tomllib.loads((workspace.root / "Cargo.lock").read_text())["package"]
    checksums = {(package["name"], package["version"]): package["checksum"] for package in locked if "checksum" in package}
    root, *others = crates
    tools = toolchain(workspace)
    itself = component(root, workspace, checksums) | {"type": "container", "name": name}
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        # Of the image itself: the same image has the same list.
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, digest)}",
        "version": 1,
        "metadata": {
            "timestamp": workspace.when,
            "component": itself,
            "properties": [{"name": "oci:manifest-digest", "value": digest}],
        },
        "components": [component(crate, workspace, checksums) for crate in sorted(others)] + tools,
        "dependencies": [
            {"ref": reference(crate), "dependsOn": sorted(reference(need) for need in crates[crate])} for crate in sorted(crates)
        ] + [{"ref": tool["bom-ref"], "dependsOn": []} for tool in tools],
    }
    return json.dumps(bom, indent=1) + "\n"

"""What Cargo and git know: which binaries there are, how they are built, and which crates are linked into each."""

import datetime
import json
import os
import pathlib
import re
import subprocess


class Trouble(Exception):
    """The images cannot be built, and why."""


class Workspace:
    """One checkout. Binaries are built into a target directory of their own, because Cargo would build all else anew for their flags."""

    def __init__(self, root):
        self.root = root
        meta = json.loads(self._run("cargo", "metadata", "--locked", "--format-version", "1"))
        self.packages = {(package["name"], package["version"]): package for package in meta["packages"]}
        self.target = pathlib.Path(meta["target_directory"]) / "images"
        members = set(meta["workspace_members"])
        self.binaries = {
            target["name"]: package
            for package in meta["packages"]
            if package["id"] in members
            for target in package["targets"]
            if "bin" in target["kind"]
        }
        self.host = re.search(r"^host: (.*)$", self._run("rustc", "-vV"), re.M)[1]
        self.rust = re.search(r"^release: (.*)$", self._run("rustc", "-vV"), re.M)[1]
        # Asked now: the checkout may be at another commit when a long build ends.
        self.when, self.revision = self._when(), self._revision()

    def _run(self, *command):
        try:
            return subprocess.run(command, cwd=self.root, check=True, stdout=subprocess.PIPE, text=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            raise Trouble(f"{' '.join(command[:2])}: {error}") from error

    def version(self, binary):
        return self.binaries[binary]["version"]

    def licence(self, binary):
        return self.binaries[binary]["license"]

    def repository(self, binary):
        """Where the source is published; none while Cargo.toml does not say so."""
        return self.binaries[binary]["repository"]

    def _when(self):
        """The time that images carry: SOURCE_DATE_EPOCH, or that of the commit; never the clock's."""
        seconds = int(os.environ.get("SOURCE_DATE_EPOCH") or self._run("git", "log", "-1", "--format=%ct"))
        return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")

    def _revision(self):
        """The commit; none if the tree has changes, since then no commit is what was built."""
        if self._run("git", "status", "--porcelain", "--untracked-files=no").strip():
            return None
        return self._run("git", "rev-parse", "HEAD").strip()

    def _places(self):
        """Directories of this machine that compilers write into binaries, and what stands there instead. Of nested ones the last counts."""
        cargo = os.environ.get("CARGO_HOME") or str(pathlib.Path.home() / ".cargo")
        return {
            self._run("rustc", "--print", "sysroot").strip(): "/rust",
            cargo: "/cargo",
            str(self.root): "/weft",
            str(self.target): "/target",
        }

    def private_paths(self):
        """What must not be found in a binary."""
        return list(self._places())

    def _packages(self, binaries):
        """Arguments for the packages of these binaries. Cargo turns on the features that any of them wants, so it is always told all of the images':
        one that is built alone is then the same as one that is built with the others."""
        return [word for package in sorted({self.binaries[binary]["name"] for binary in binaries}) for word in ("-p", package)]

    def build(self, binaries, every, profile):
        """Builds binaries, of every image's, and says where they are."""
        flags = [f"--remap-path-prefix={place}={name}" for place, name in self._places().items()]
        command = ["cargo", "build", "--locked", "--profile", profile, "--target-dir", str(self.target)]
        command += ["--message-format", "json-render-diagnostics"]
        # Added to the flags in .cargo/config.toml, which make the binaries static.
        command += ["--config", f"target.{self.host}.rustflags={json.dumps(flags)}"]
        command += self._packages(every)
        for binary in binaries:
            command += ["--bin", binary]
        built = {}
        for line in self._run(*command).splitlines():
            message = json.loads(line)
            if message.get("executable") and message["target"]["name"] in binaries:
                built[message["target"]["name"]] = pathlib.Path(message["executable"])
        return built

    def linked(self, every):
        """Each binary's crates, as {(name, version): {(name, version), ...}}: what is linked, with the features that `build` turns on."""
        command = ["cargo", "tree", "--locked", "--target", self.host, "--edges", "normal,no-proc-macro", "--prefix", "depth", "--format", "\t{p}"]
        command += self._packages(every)
        needs, path = {}, []
        for line in filter(None, self._run(*command).splitlines()):
            depth, described = line.split("\t")
            name, version = described.split()[:2]
            crate = (name, version.removeprefix("v"))
            del path[int(depth):]
            needs.setdefault(crate, set())
            if path:
                needs[path[-1]].add(crate)
            path.append(crate)
        return {binary: reach(needs, (self.binaries[binary]["name"], self.version(binary))) for binary in every}


def reach(needs, root):
    """The part of a graph that can be reached from a root; the root is first."""
    found, todo = {}, [root]
    while todo:
        crate = todo.pop()
        if crate not in found:
            found[crate] = needs[crate]
            todo.extend(sorted(needs[crate], reverse=True))
    return found

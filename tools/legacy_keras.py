"""Prints which version of tf-keras goes with the TensorFlow that is installed, say `2.21.*`."""

from importlib import metadata

for name in ("tensorflow", "tensorflow-cpu"):
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        continue
    print(".".join(version.split(".")[:2]) + ".*")
    break
else:
    raise SystemExit("legacy_keras: neither tensorflow nor tensorflow-cpu is installed")

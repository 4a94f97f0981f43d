"""Gives a torch that was built for CUDA empty libraries in place of those of CUDA, so that it loads without them.

The only torch on PyPI for x86-64 is built for CUDA, and its libraries are 3 GB that a CPU does not use. Nothing of
them is called there; the loader only wants every name to be. Usage: python torch_stubs.py SITE_PACKAGES
"""

import pathlib
import re
import subprocess
import sys
import tempfile

FOREIGN = re.compile(r"lib(cu|nccl|nvrtc|nvshmem)")
LOOSE = re.compile(r"cu[A-Za-z]|nccl|nvrtc|nvshmem|__cuda")


def lines(*command: str) -> list[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def stub(path: pathlib.Path, names: dict[str, set[str]]) -> None:
    """A library with these names, by version; under no version they have none."""
    with tempfile.TemporaryDirectory() as folder:
        source, script = pathlib.Path(folder, "stub.s"), pathlib.Path(folder, "versions")
        every = sorted(set().union(*names.values()))
        labels = "".join(f".globl {name}\n.type {name}, @function\n{name}:\n" for name in every)
        source.write_text(f".text\n{labels} mov $100, %eax\n ret\n.section .note.GNU-stack,\"\",@progbits\n")
        nodes = {version: found for version, found in names.items() if version}
        script.write_text("".join(f"{v} {{ global: {'; '.join(sorted(f))}; }};\n" for v, f in nodes.items()))
        flags = [f"-Wl,--version-script={script}"] if nodes else []
        output = ["-o", str(path), str(source)]
        subprocess.run(["cc", "-shared", "-nostdlib", f"-Wl,-soname,{path.name}", *flags, *output], check=True)


def main(site: str) -> None:
    folder = pathlib.Path(site, "torch", "lib")
    wanted: dict[str, dict[str, set[str]]] = {}
    loose: set[str] = set()
    for library in folder.glob("*.so"):
        owners, owner = {}, ""
        for line in lines("objdump", "-p", str(library)):
            words = line.split()
            if line.startswith("  required from "):
                owner = words[-1].rstrip(":")
            elif len(words) == 4 and words[0].startswith("0x"):
                owners[words[3]] = owner
            elif words[:1] == ["NEEDED"] and FOREIGN.match(words[1]):
                wanted.setdefault(words[1], {})
        for line in lines("nm", "-D", "--undefined-only", str(library)):
            symbol, _, version = line.split()[-1].partition("@")
            if FOREIGN.match(owners.get(version, "")):
                wanted.setdefault(owners[version], {}).setdefault(version, set()).add(symbol)
            elif not version and LOOSE.match(symbol):
                loose.add(symbol)
    for name, names in wanted.items():
        if not (folder / name).exists():
            stub(folder / name, names or {"": loose})


if __name__ == "__main__":
    main(sys.argv[1])

"""The reference of the public interface as HTML pages in build/docs: `make docs` (extra `docs`)."""

from pathlib import Path

import pdoc

import sparse_engine

MODULES = (
    "sparse_engine",
    "sparse_engine.attention",
    "sparse_engine.errors",
    "sparse_engine.initialisation",
    "sparse_engine.starts",
    "sparse_kernels",
)


def main(target: Path) -> None:
    """Write a page for each module, and an index."""
    for name in sparse_engine.__all__:
        getattr(sparse_engine, name)  # imported when first used, and shown once it is there
    pdoc.render.configure(docformat="google")
    pdoc.pdoc(*MODULES, output_directory=target)
    print(f"wrote {target / 'index.html'}")


if __name__ == "__main__":
    main(Path("build") / "docs")

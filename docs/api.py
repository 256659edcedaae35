"""The reference of the public interface as HTML pages in build/docs: `make docs` (extra `docs`)."""

import importlib
import warnings
from pathlib import Path
from unittest import mock

import sparse_engine

MODULES = (
    "sparse_engine",
    "sparse_engine.layers.attention",
    "sparse_engine.runs.ensemble",
    "sparse_engine.errors",
    "sparse_engine.evaluation.metrics",
    "sparse_engine.runs.exported",
    "sparse_engine.layers.initialisation",
    "sparse_engine.layers.other_kinds",
    "sparse_engine.sparsity.distribution",
    "sparse_engine.sparsity.saliency",
    "sparse_engine.layers.report",
    "sparse_engine.models.grouped.members",
    "sparse_kernels",
    "sparse_kernels.dispatch.backend",
)


def main(target: Path) -> None:
    """Write a page for each module, and an index."""
    import pdoc

    for name in sparse_engine.__all__:
        getattr(sparse_engine, name)  # imported when first used, and shown once it is there
    for name in MODULES:
        importlib.import_module(name)
    pdoc.render.configure(docformat="google")
    # Modules by their earlier names have no pages.
    own = mock.patch.object(sparse_engine, "__path__", sparse_engine.__path__[:1])
    with warnings.catch_warnings(), own:
        # pdoc looks up a NamedTuple's hints in another module, and shows them as written.
        warnings.filterwarnings("ignore", r"Error parsing type annotation ForwardRef\('Tensor'\)")
        pdoc.pdoc(*MODULES, output_directory=target)
    print(f"wrote {target / 'index.html'}")


if __name__ == "__main__":
    main(Path("build") / "docs")

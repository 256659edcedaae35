"""Rows of a study that nobody has made, as sparse-engine plan reads them."""

from sparse_engine.planning.rows import Row

EDST = {
    **{"method": "edst", "members": 3, "sparsity": 0.8, "block": "16x16"},
    **{"distribution": "erk"},
}
RIGL = {"method": "rigl", "sparsity": 0.9, "block": "16x16", "distribution": "erk"}


def row(settings=None, difference=0.0, error=0.0, epochs=250, **more):
    """Return a row of a dense run, where nothing else is said."""
    values = {
        **{"study": "none", "model": "wrn10-2", "network": "wrn10-2"},
        **{"settings": settings or {"method": "dense"}, "epochs": epochs, "dense_epochs": 250},
        **{"n": 3, "accuracy": 0.6 + difference, "deviation": 0.003},
        **{"difference": difference, "error": error, "nll": 1.2, "ece": 0.1},
        **{"dataset": "cifar10-16px-5000-5000", "pixels": 16, "images": 5000, "batch_size": 128},
        **{"device": "CPU one", "dtype": "fp32"},
    }
    return Row(**{**values, **more})


def some_rows():
    """Return dense networks of three lengths, a narrow one, and three sparse trainings."""
    return [
        row(),
        row(difference=-0.012, error=0.002, epochs=125),
        row(difference=0.002, error=0.003, epochs=330),
        row(difference=-0.05, error=0.004, epochs=450, network="wrn10-1"),
        row({**EDST, "block": "1x1"}, 0.008, 0.002, 450, nll=1.0, ece=0.03),
        row({**EDST, "taps": "row"}, 0.007, 0.003, 450, nll=1.01, ece=0.03),
        row(RIGL, -0.01, 0.003),
    ]

"""What a run is of: the driver's word for the GPU, and every line of code."""

from bench.gpu import driver


def test_the_driver_names_the_first_gpu(monkeypatch):
    class Driver:
        gpus, works = ["NVIDIA H100 80GB HBM3", "NVIDIA T4"], True

        def cuInit(self, _):
            return 0 if self.works else 100

        def cuDeviceGetCount(self, count):
            count._obj.value = len(self.gpus)
            return 0

        def cuDeviceGet(self, device, number):
            device._obj.value = number
            return 0

        def cuDeviceGetName(self, name, length, device):
            name.value = self.gpus[device.value].encode()[: length - 1]
            return 0

    monkeypatch.setattr(driver.ctypes, "CDLL", lambda name: Driver())
    assert driver.gpu_name() == "NVIDIA H100 80GB HBM3"
    monkeypatch.setattr(Driver, "works", False)
    assert driver.gpu_name() is None
    monkeypatch.setattr(Driver, "works", True)
    monkeypatch.setattr(Driver, "gpus", [])
    assert driver.gpu_name() is None

    def absent(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(driver.ctypes, "CDLL", absent)
    assert driver.gpu_name() is None


def test_facts_change_with_device_commit_and_code(monkeypatch, tmp_path):
    before = driver.facts("NVIDIA H100", "whole")
    assert before == driver.facts("NVIDIA H100", "whole")
    assert before != driver.facts("NVIDIA H200", "whole")
    monkeypatch.setenv("COMMIT", "another")
    assert before != driver.facts("NVIDIA H100", "whole")
    monkeypatch.delenv("COMMIT")
    monkeypatch.setattr(driver, "CODE", ("bench",))
    assert before != driver.facts("NVIDIA H100", "whole")

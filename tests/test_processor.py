"""What is said of a processor comes from Linux's description of it."""

import platform

from fluxsmith import processor


def test_its_name_is_the_model_s(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC: 9\n")
    assert processor.name(info) == "AMD EPYC: 9"


def test_without_a_model_the_kind_of_machine_serves(tmp_path):
    info = tmp_path / "cpuinfo"
    assert processor.name(info) == platform.machine()
    info.write_text("processor\t: 0\nmodel\t\t: 2\nmodel name\t:\n")
    assert processor.name(info) == platform.machine()

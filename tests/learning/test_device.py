import pytest
import torch

from p2pl.errors import InputError
from p2pl.learning.device import SMALL_MODEL_PARAMETERS, auto_threads, computing_with, pick


def pretend(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)


def test_auto_takes_the_gpu_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, there=False)
    assert pick("auto") == torch.device("cpu")
    pretend(monkeypatch, there=True)
    assert pick("auto") == pick("cuda") == torch.device("cuda")
    assert pick("cpu") == torch.device("cpu")


def test_asking_for_an_absent_gpu_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, there=False)
    with pytest.raises(InputError, match=r"'cuda', allowed auto or cpu.*CUDA build of torch"):
        pick("cuda")


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(InputError, match="'tpu', allowed auto, cpu, cuda"):
        pick("tpu")


def test_small_models_take_one_thread_and_large_ones_all() -> None:
    assert auto_threads(7_850, 8) == 1
    assert auto_threads(SMALL_MODEL_PARAMETERS, 8) == 8
    assert auto_threads(SMALL_MODEL_PARAMETERS, 0) == 1


def fail_with(threads: int) -> None:
    with computing_with(threads):
        assert torch.get_num_threads() == threads
        raise ValueError("work")


def test_threads_are_as_before_even_when_the_work_fails() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ValueError, match="work"):
        fail_with(before + 1)
    assert torch.get_num_threads() == before

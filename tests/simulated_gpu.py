"""A simulated GPU in Python, for tests of the GPU path on machines without one.

Its tensors hold real data on the CPU and claim to be on `cuda:0`, so code takes its GPU branches.
An operation that mixes them with a CPU tensor raises `MixedDevicesError`, as CUDA would. Each time
the host waits for the device is counted with its source line, and so is each copy to the device.
Nothing is registered in PyTorch: after the context, the process is as before.

PyTorch's C++ code sees them on the device `meta`, whose autograd needs no driver.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

GPU = torch.device("cuda:0")
_ROOT = Path(__file__).resolve().parents[1]
_ATEN = torch.ops.aten
# Their results have sizes that depend on the data, so the host waits for them.
_READS = {
    _ATEN.nonzero.default,
    _ATEN.masked_select.default,
    _ATEN.equal.default,
    _ATEN.repeat_interleave.Tensor,
    _ATEN._unique2.default,
    _ATEN.isin.Tensor_Tensor,
}
_TAKE_CPU_INDICES = {
    _ATEN.index.Tensor,
    _ATEN.index_put.default,
    _ATEN.index_put_.default,
    _ATEN._index_put_impl_.default,
}
# Those of autocast, whose kernels in C++ take tensors of real GPUs only.
_IN_BF16 = {
    F.linear,
    F.conv2d,
    F.conv3d,
    F.multi_head_attention_forward,
    F.prelu,
    F.scaled_dot_product_attention,
    torch.matmul,
    torch.bmm,
    torch.einsum,
    Tensor.matmul,
    Tensor.bmm,
    Tensor.__matmul__,
}


class MixedDevicesError(RuntimeError):
    """An operation has tensors of the CPU and of the GPU."""


@dataclass
class Traffic:
    """The waits of the host for the device, and the copies to it, by "path:line operation"."""

    reads: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    """Copies to the device; the host waits for those of memory that is not pinned."""

    def clear(self) -> None:
        """Forgets everything that was counted."""
        self.reads.clear()
        self.copies.clear()


class GpuTensor(torch.Tensor):
    """A tensor on the simulated GPU; `data_on_cpu` holds its values."""

    data_on_cpu: Tensor
    traffic: Traffic
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, data: Tensor, traffic: Traffic) -> "GpuTensor":
        data = data.resolve_conj()  # operations below this dispatch ignore the mark of a conjugate
        shape = torch.empty_strided(data.shape, data.stride(), dtype=data.dtype, device="meta")
        tensor = torch.Tensor._make_subclass(cls, shape, False, device_for_backend_keys=GPU)
        tensor.data_on_cpu, tensor.traffic = data, traffic
        return tensor

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """`cuda:0`."""
        return GPU

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        first = next(x for x in _tensors(args, kwargs or {}) if isinstance(x, GpuTensor))
        return _run(first.traffic, func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Sees the operations without a `GpuTensor`: factories, and copies to the device."""

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self.traffic = traffic

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _run(self.traffic, func, args, kwargs or {})


class _Devices(TorchFunctionMode):
    """Replaces the device `cuda` by `meta` in calls of torch, before they reach C++.

    There, a tensor from Python numbers on `meta` would lose them, so it is made on the CPU.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        args = tuple(_meta(value) for value in args)
        kwargs = {name: _meta(value) for name, value in (kwargs or {}).items()}
        if func in (torch.tensor, torch.as_tensor) and "meta" in str(kwargs.get("device")):
            return func(*args, **{**kwargs, "device": "cpu"}).to("meta")
        if func is torch.Tensor.new_tensor and isinstance(args[0], GpuTensor):
            return torch.tensor(args[1], dtype=args[0].dtype).to("meta")
        if func in _IN_BF16 and torch.is_autocast_enabled("cuda"):
            args = tuple(_mapped(_bf16, value) for value in args)
            kwargs = {name: _mapped(_bf16, value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _bf16(value: Any) -> Any:
    is_wide = isinstance(value, GpuTensor) and value.dtype == torch.float32
    return value.bfloat16() if is_wide else value


def _meta(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("meta")
    return "meta" if isinstance(value, str) and value.startswith("cuda") else value


@contextmanager
def simulated_gpu() -> Iterator[Traffic]:
    """Gives this thread a GPU: `torch.cuda.is_available()`, and `.to("cuda")` works."""
    traffic = Traffic()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "is_available": True,
            "device_count": 1,
            "get_device_properties": SimpleNamespace(name="GPU", major=9, total_memory=1 << 34),
            "current_device": 0,
            "is_bf16_supported": True,
            "synchronize": None,
            "empty_cache": None,
            "reset_peak_memory_stats": None,
            "max_memory_allocated": 0,
            "mem_get_info": (1 << 34, 1 << 34),
            "get_rng_state": torch.get_rng_state(),
            "set_rng_state": None,
            "device": nullcontext(),
            "Stream": SimpleNamespace(synchronize=_returns(None)),
            "current_stream": None,
            "stream": nullcontext(),
        }.items():
            patch.setattr(torch.cuda, name, _returns(value))
        stream = SimpleNamespace(is_capturing=_returns(False))
        patch.setattr(torch.accelerator, "current_stream", _returns(stream))
        run_backward = torch.autograd._engine_run_backward

        def backward(*args: Any, **kwargs: Any) -> Any:
            with _Devices():  # activation checkpointing recomputes a part of the forward pass
                return run_backward(*args, **kwargs)

        patch.setattr(torch.autograd, "_engine_run_backward", backward)
        to_list = torch.Tensor.tolist
        patch.setattr(torch.Tensor, "tolist", lambda self: to_list(self.cpu()))
        patch.setattr(torch.Tensor, "record_stream", _returns(None))
        patch.setattr(torch.Tensor, "pin_memory", lambda self, *_: self.clone())
        overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with _Devices(), _Mode(traffic):
                yield traffic
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(overwrites)


def _returns(value: object) -> Callable[..., object]:
    return lambda *_, **__: value


def _run(traffic: Traffic, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    def wrapped(value: Any) -> Any:
        plain = isinstance(value, Tensor) and not isinstance(value, GpuTensor)
        return GpuTensor(value, traffic) if plain else value

    tensors = _tensors(args, kwargs)
    on_gpu = any(isinstance(x, GpuTensor) for x in tensors)
    device = kwargs.get("device")
    to_gpu = on_gpu if device is None else torch.device(device).type in ("cuda", "meta")
    plain = {k: v for k, v in kwargs.items() if k not in ("device", "pin_memory")}
    if func is _ATEN._to_copy.default:
        _count_copy(traffic, to_gpu, isinstance(args[0], GpuTensor), func)
    elif func is _ATEN.copy_.default:
        _count_copy(traffic, isinstance(args[0], GpuTensor), isinstance(args[1], GpuTensor), func)
    elif on_gpu:
        _refuse_mixed(traffic, func, tensors)
        if func is _ATEN._local_scalar_dense.default:
            traffic.reads[_source(func)] += 1
            return func(_on_cpu(args[0]))
        by_bool = func is _ATEN.index.Tensor and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        if func in _READS or by_bool:
            traffic.reads[_source(func)] += 1
    if not to_gpu and not on_gpu:
        return func(*args, **{k: v for k, v in kwargs.items() if k != "pin_memory"})
    result = func(*_mapped(_on_cpu, args), **{k: _mapped(_on_cpu, v) for k, v in plain.items()})
    if not to_gpu:
        return result
    first = func._schema.returns[:1]
    if first and first[0].alias_info is not None and first[0].alias_info.is_write:
        if torch.Tag.inplace_view in func.tags:  # the shape of the tensor itself changes, too
            with torch._C._DisableTorchDispatch():
                func(*args, **kwargs)
        return kwargs["out"] if "out" in kwargs else args[0]  # computed in place
    return _mapped(wrapped, result)


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """Applies a function to each element of nested lists and tuples."""
    if type(value) in (list, tuple):
        return type(value)(_mapped(function, one) for one in value)
    return function(value)


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    found: list[Tensor] = []
    _mapped(lambda x: found.append(x) if isinstance(x, Tensor) else None, (*args, *kwargs.values()))
    return found


def _on_cpu(value: Any) -> Any:
    return value.data_on_cpu if isinstance(value, GpuTensor) else value


def _count_copy(traffic: Traffic, to_gpu: bool, from_gpu: bool, func: Any) -> None:
    if to_gpu != from_gpu:
        (traffic.copies if to_gpu else traffic.reads)[_source(func)] += 1


def _refuse_mixed(traffic: Traffic, func: Any, tensors: Sequence[Tensor]) -> None:
    for tensor in tensors:
        if isinstance(tensor, GpuTensor) or tensor.dim() == 0:
            continue
        if func not in _TAKE_CPU_INDICES:
            raise MixedDevicesError(
                f"{func}: a tensor of shape {tuple(tensor.shape)} is on the CPU, at {_source(func)}"
            )
        traffic.copies[_source(func)] += 1


def _source(func: Any) -> str:
    """Returns the innermost line of the project, and the operation."""
    frame: FrameType | None = sys._getframe()
    while frame := frame and frame.f_back:
        path = Path(frame.f_code.co_filename)
        if any(path.is_relative_to(_ROOT / name) for name in ("stop_core", "pipelines")):
            return f"{path.relative_to(_ROOT)}:{frame.f_lineno} {func.overloadpacket.__name__}"
    return f"elsewhere {func.overloadpacket.__name__}"

"""NVML calls that a device, or its driver, may not support."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import pynvml

LOST: Final = (pynvml.NVMLError_GpuIsLost, pynvml.NVMLError_ResetRequired)
_FIELD_BY_TYPE: Final = {
    pynvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_SHORT: "usVal",
}

Value = TypeVar("Value")


def supported(function: Callable[..., Value], *arguments: Any) -> Value | None:
    """What NVML answers, or None where this device or driver does not give it.

    Raises one of LOST when the device is gone.
    """
    try:
        return function(*arguments)
    except LOST:
        raise
    except pynvml.NVMLError:
        return None


def field_value(handle: Any, field: int) -> float | None:
    """The value of an NVML field, or None where there is none. Raises one of LOST when the device is gone."""
    fields = supported(pynvml.nvmlDeviceGetFieldValues, handle, [field])
    if fields is None or fields[0].nvmlReturn != pynvml.NVML_SUCCESS:
        return None
    name = _FIELD_BY_TYPE.get(fields[0].valueType)
    return None if name is None else float(getattr(fields[0].value, name))


def scaled(value: float | None, factor: float) -> float | None:
    """A value in another unit."""
    return None if value is None else value * factor

"""Names for the arrays in signatures, by the type of their values."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Bool = NDArray[np.bool_]
ByteString = NDArray[np.bytes_]
Float = NDArray[np.float64]
Float32 = NDArray[np.float32]
Int = NDArray[np.int64]
Int8 = NDArray[np.int8]
Int32 = NDArray[np.int32]
String = NDArray[np.str_]
Uint64 = NDArray[np.uint64]
Images = NDArray[np.uint8]  # (n, height, width, channels)
Pixels = NDArray[np.uint8]  # (height, width, channels)

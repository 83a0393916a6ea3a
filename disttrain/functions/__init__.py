"""What users call on Tensors, one module per family; ``disttrain`` and the methods of Tensor show them."""

import disttrain.tensors  # noqa: F401  the class that all of them take and return

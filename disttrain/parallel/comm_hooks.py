"""Ready-made hooks for ``DistributedDataParallel.register_comm_hook``.

They are ``torch.distributed.algorithms.ddp_comm_hooks.default_hooks``: how a bucket of gradients is averaged over the
ranks in place of the plain sum. Those here sum in the fixed order as well, so that results stay the same bits on any
number of processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from disttrain import collectives, distributed, dtypes
from disttrain.futures import Future

if TYPE_CHECKING:
    from disttrain.distributed.groups import ProcessGroup
    from disttrain.parallel.buckets import GradBucket
    from disttrain.tensors import Tensor

    Hook = Callable[[Any, GradBucket], Future]


def allreduce_hook(process_group: ProcessGroup | None, bucket: GradBucket) -> Future:
    """Average the bucket over the ranks of the group (all by default)."""
    return _average(process_group, bucket.buffer())


def fp16_compress_hook(process_group: ProcessGroup | None, bucket: GradBucket) -> Future:
    """Send the gradients in float16: half the bytes. A part that is below 6e-8 is lost."""
    return _compressed(process_group, bucket, dtypes.float16)


def bf16_compress_hook(process_group: ProcessGroup | None, bucket: GradBucket) -> Future:
    """Send the gradients in bfloat16: half the bytes, 8 bits of precision."""
    return _compressed(process_group, bucket, dtypes.bfloat16)


def fp16_compress_wrapper(hook: Hook) -> Hook:
    """Return a hook that gives ``hook`` the bucket in float16."""
    return _wrapper(hook, dtypes.float16)


def bf16_compress_wrapper(hook: Hook) -> Hook:
    """Return a hook that gives ``hook`` the bucket in bfloat16."""
    return _wrapper(hook, dtypes.bfloat16)


def _average(group: ProcessGroup | None, tensor: Tensor) -> Future:
    tensor.div_((group or collectives.connect()).size)  # first, so that the sum stays in range
    work = distributed.all_reduce(tensor, group=group, async_op=True)
    assert work is not None
    return work.get_future().then(lambda f: f.value()[0])


def _compressed(group: ProcessGroup | None, bucket: GradBucket, kind: Any) -> Future:
    buffer = bucket.buffer()
    return _average(group, buffer.to(kind)).then(lambda f: buffer.copy_(f.value()))


def _wrapper(hook: Hook, kind: Any) -> Hook:
    def compressed(state: Any, bucket: GradBucket) -> Future:
        buffer = bucket.buffer()
        bucket.set_buffer(buffer.to(kind))
        return hook(state, bucket).then(lambda f: buffer.copy_(f.value()))

    return compressed

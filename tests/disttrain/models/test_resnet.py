"""ResNets against an implementation in PyTorch, written apart, that reads the same state dict."""

import numpy as np
import pytest

import disttrain as dt
from disttrain.models import resnet18, resnet50

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
F = torch.nn.functional


def resnet(w, x, stages, bottleneck):
    """Scores of images, by the paper's table 1 and torchvision's names, with batch statistics."""

    def conv(x, name, stride=1):
        weight = w[name + ".weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)

    def norm(x, name):
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
        scale, shift = (w[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    x = F.max_pool2d(F.relu(norm(conv(x, "conv1", 2), "bn1")), 3, 2, 1)
    for stage, blocks in enumerate(stages, 1):
        for b in range(blocks):
            at, stride = f"layer{stage}.{b}.", 2 if stage > 1 and b == 0 else 1
            kinds = (1, 2, 3) if bottleneck else (1, 2)
            with_stride = 2 if bottleneck else 1
            y = x
            for k in kinds:
                y = norm(conv(y, f"{at}conv{k}", stride if k == with_stride else 1), f"{at}bn{k}")
                if k != kinds[-1]:
                    y = F.relu(y)
            if at + "downsample.0.weight" in w:
                x = norm(conv(x, at + "downsample.0", stride), at + "downsample.1")
            x = F.relu(x + y)
    return x.mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"]


@pytest.mark.parametrize(
    ("make", "stages", "bottleneck", "count"),
    [(resnet18, (2, 2, 2, 2), False, 11_689_512), (resnet50, (3, 4, 6, 3), True, 25_557_032)],
)
def test_resnets(make, stages, bottleneck, count):
    dt.manual_seed(0)
    assert sum(p.numel() for p in make().parameters()) == count
    model = make(num_classes=10).double()
    w = {name: torch.tensor(p.detach().numpy(), requires_grad=True) for name, p in model.named_parameters()}
    x = np.random.default_rng(1).standard_normal((2, 3, 64, 64))

    ours, theirs = model(dt.from_numpy(x)), resnet(w, torch.tensor(x), stages, bottleneck)

    np.testing.assert_allclose(ours.detach().numpy(), theirs.detach().numpy(), rtol=1e-6, atol=1e-8)
    ours.logsumexp(1).sum().backward()
    theirs.logsumexp(1).sum().backward()
    for name, p in model.named_parameters():
        expected = w[name].grad.numpy()
        np.testing.assert_allclose(
            p.grad.numpy(), expected, rtol=1e-5, atol=1e-7 * max(1, abs(expected).max()), err_msg=name
        )

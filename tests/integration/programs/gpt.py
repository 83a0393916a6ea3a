"""A trainer of a small GPT, in one process or in several by DDP, as people write it for PyTorch and torchrun."""

import inspect
import math
import os
import sys
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch.distributed import destroy_process_group, init_process_group
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP

max_iters, batch_size, block_size, accumulation = 50, 8, 16, 2
learning_rate, min_lr, warmup_iters = 2e-2, 2e-3, 4
device, dtype, compile = "cpu", "float32", "--compile" in sys.argv
out = "ckpt.pt"


@dataclass
class Config:
    vocab: int = 16
    n_layer: int = 2
    n_head: int = 2
    n_embd: int = 16
    dropout: float = 0.0


class LayerNorm(nn.Module):
    """Without bias."""

    def __init__(self, ndim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ndim))
        self.bias = None

    def forward(self, input):
        return F.layer_norm(input, self.weight.shape, self.weight, self.bias, 1e-5)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.n_head, self.n_embd, self.dropout = config.n_head, config.n_embd, config.dropout
        self.flash = hasattr(torch.nn.functional, "scaled_dot_product_attention")

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = (
            t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
            for t in self.c_attn(x).split(self.n_embd, dim=2)
        )
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=None, dropout_p=self.dropout if self.training else 0, is_causal=True
        )
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1, self.attn = LayerNorm(config.n_embd), Attention(config)
        self.ln_2 = LayerNorm(config.n_embd)
        self.mlp = nn.ModuleDict({
            "c_fc": nn.Linear(config.n_embd, 4 * config.n_embd, bias=False),
            "gelu": nn.GELU(),
            "c_proj": nn.Linear(4 * config.n_embd, config.n_embd, bias=False),
        })  # fmt: skip

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp.c_proj(self.mlp.gelu(self.mlp.c_fc(self.ln_2(x))))


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(config.vocab, config.n_embd),
            "wpe": nn.Embedding(block_size, config.n_embd),
            "drop": nn.Dropout(config.dropout),
            "h": nn.ModuleList([Block(config) for _ in range(config.n_layer)]),
            "ln_f": LayerNorm(config.n_embd),
        })  # fmt: skip
        self.lm_head = nn.Linear(config.n_embd, config.vocab, bias=False)
        self.transformer.wte.weight = self.lm_head.weight
        self.apply(self._init_weights)
        for pn, p in self.named_parameters():
            if pn.endswith("c_proj.weight"):
                torch.nn.init.normal_(p, mean=0.0, std=0.02 / math.sqrt(2 * config.n_layer))

    def _init_weights(self, module):
        if isinstance(module, nn.Linear | nn.Embedding):
            torch.nn.init.normal_(module.weight, mean=0.0, std=0.02)

    def forward(self, idx, targets=None):
        pos = torch.arange(0, idx.size(1), dtype=torch.long, device=idx.device)
        x = self.transformer.drop(self.transformer.wte(idx) + self.transformer.wpe(pos))
        for block in self.transformer.h:
            x = block(x)
        logits = self.lm_head(self.transformer.ln_f(x))
        if targets is None:
            return logits[:, [-1], :], None
        return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)

    def configure_optimizers(self, weight_decay, learning_rate, betas):
        params = {n: p for n, p in self.named_parameters() if p.requires_grad}
        groups = [
            {"params": [p for p in params.values() if p.dim() >= 2], "weight_decay": weight_decay},
            {"params": [p for p in params.values() if p.dim() < 2], "weight_decay": 0.0},
        ]
        fused = "fused" in inspect.signature(torch.optim.AdamW).parameters and device == "cuda"
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, **({"fused": True} if fused else {}))

    @torch.no_grad()
    def generate(self, idx, count, temperature=1.0, top_k=None):
        for _ in range(count):
            logits, _ = self(idx[:, -block_size:])
            logits = logits[:, -1, :] / temperature
            v, _ = torch.topk(logits, min(top_k, logits.size(-1)))
            logits[logits < v[:, [-1]]] = -float("Inf")
            idx = torch.cat((idx, torch.multinomial(F.softmax(logits, dim=-1), num_samples=1)), dim=1)
        return idx


ddp = int(os.environ.get("RANK", -1)) != -1
rank, world = 0, 1
if ddp:
    init_process_group(backend="gloo")
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
master = rank == 0
torch.manual_seed(1337)
if "--double" in sys.argv:
    torch.set_default_dtype(torch.float64)
torch.backends.cuda.matmul.allow_tf32 = True
ptdtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
ctx = nullcontext() if device == "cpu" else torch.amp.autocast(device_type=device, dtype=ptdtype)


def get_batch(iteration, micro_step):
    """Return this rank's rows of a batch that depends on no random number."""
    first = torch.arange(batch_size).view(-1, 1) * 3 + iteration + 5 * micro_step
    rows = (
        first + torch.arange(block_size + 1) * 7 + (torch.arange(block_size + 1) ** 2) // 5
    ) % Config.vocab
    rows = rows[rank * batch_size // world : (rank + 1) * batch_size // world]
    return rows[:, :-1].contiguous().to(device), rows[:, 1:].contiguous().to(device)


model = GPT(Config())
if "--same-start" in sys.argv:
    for p in model.parameters():
        if p.dim() > 1:
            p.data.copy_(0.1 * torch.sin(torch.arange(p.numel()) * 1.9).view_as(p))
iteration = 0
if "--resume" in sys.argv:
    checkpoint = torch.load(out, map_location=device)
    model.load_state_dict(checkpoint["model"])
    iteration = checkpoint["iteration"]
model.to(device)
scaler = (
    torch.cuda.amp.GradScaler(enabled=(dtype == "float16"))
    if device != "cpu"
    else torch.amp.GradScaler(enabled=False)
)
optimizer = model.configure_optimizers(0.1, learning_rate, (0.9, 0.95))
if "--resume" in sys.argv:
    optimizer.load_state_dict(checkpoint["optimizer"])
if compile:
    model = torch.compile(model)
if ddp:
    model = DDP(model)
raw_model = model.module if ddp else model


def get_lr(it):
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    ratio = (it - warmup_iters) / (2 * max_iters - warmup_iters)
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (learning_rate - min_lr)


end = iteration + max_iters
while iteration < end:
    for param_group in optimizer.param_groups:
        param_group["lr"] = get_lr(iteration)
    total = torch.zeros(1)
    for micro_step in range(accumulation):
        if ddp:
            model.require_backward_grad_sync = micro_step == accumulation - 1
        X, Y = get_batch(iteration, micro_step)
        with ctx:
            logits, loss = model(X, Y)
            loss = loss / accumulation
        total += loss.detach() / world
        scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    if ddp:
        torch.distributed.all_reduce(total)
    if master:
        print(f"iter {iteration}: loss: {total.item():.6f} norm: {norm.item():.6f}")
    iteration += 1

if master:
    checkpoint = {
        "model": raw_model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "iteration": iteration,
    }
    torch.save(checkpoint, out)
    raw_model.eval()
    print("text:", raw_model.generate(torch.zeros((1, 1), dtype=torch.long), 8, top_k=3)[0].tolist())
if ddp:
    destroy_process_group()

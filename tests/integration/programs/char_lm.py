"""A language model over characters: an LSTM or a Transformer, plain SGD by hand, as people write it for PyTorch."""

import argparse
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

TEXT = "the quick brown fox jumps over the lazy dog; " * 150


class RNNModel(nn.Module):
    def __init__(self, ntoken, ninp, nlayers, tied):
        super().__init__()
        self.encoder = nn.Embedding(ntoken, ninp)
        self.rnn = nn.LSTM(ninp, ninp, nlayers)
        self.decoder = nn.Linear(ninp, ntoken)
        if tied:
            self.decoder.weight = self.encoder.weight
        self.ninp, self.nlayers = ninp, nlayers

    def forward(self, input, hidden):
        output, hidden = self.rnn(self.encoder(input), hidden)
        decoded = self.decoder(output)
        return F.log_softmax(decoded.view(-1, decoded.size(2)), dim=1), hidden

    def init_hidden(self, bsz):
        weight = next(self.parameters())
        return tuple(weight.new_zeros(self.nlayers, bsz, self.ninp) for _ in range(2))


class PositionalEncoding(nn.Module):
    def __init__(self, d_model, max_len=64):
        super().__init__()
        pe = torch.zeros(max_len, d_model)
        position = torch.arange(0, max_len).unsqueeze(1)
        div_term = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10000.0) / d_model))
        pe[:, 0::2] = torch.sin(position * div_term)
        pe[:, 1::2] = torch.cos(position * div_term)
        self.register_buffer("pe", pe.unsqueeze(0).transpose(0, 1))

    def forward(self, x):
        return x + self.pe[: x.size(0), :]


class TransformerModel(nn.Transformer):
    def __init__(self, ntoken, ninp, nlayers):
        super().__init__(d_model=ninp, nhead=2, dim_feedforward=ninp, num_encoder_layers=nlayers, dropout=0.0)
        self.input_emb = nn.Embedding(ntoken, ninp)
        self.pos = PositionalEncoding(ninp)
        self.head = nn.Linear(ninp, ntoken)
        self.ninp = ninp

    def forward(self, src):
        mask = torch.log(torch.tril(torch.ones(len(src), len(src))))
        out = self.head(self.encoder(self.pos(self.input_emb(src) * math.sqrt(self.ninp)), mask=mask))
        return F.log_softmax(out, dim=-1).view(-1, out.size(-1))


def repackage_hidden(h):
    return h.detach() if isinstance(h, torch.Tensor) else tuple(repackage_hidden(v) for v in h)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="LSTM")
    parser.add_argument("--lr", type=float, default=5.0)
    parser.add_argument("--clip", type=float, default=0.25)
    parser.add_argument("--bptt", type=int, default=12)
    parser.add_argument("--tied", action="store_true")
    parser.add_argument("--same-start", action="store_true", help="weights that depend on no random number")
    parser.add_argument("--double", action="store_true")
    parser.add_argument("--save", default="model.pt")
    args = parser.parse_args()

    torch.manual_seed(1111)
    if args.double:
        torch.set_default_dtype(torch.float64)
    torch.backends.cudnn.benchmark = True
    vocabulary = sorted(set(TEXT))
    ids = torch.LongTensor([vocabulary.index(c) for c in TEXT])
    nbatch = ids.size(0) // 8
    data = ids.narrow(0, 0, nbatch * 8).view(8, -1).t().contiguous()
    if args.model == "LSTM":
        model = RNNModel(len(vocabulary), 16, 2, args.tied)
    else:
        model = TransformerModel(len(vocabulary), 16, 1)
    if args.same_start:
        for p in model.parameters():
            p.data.copy_(0.3 * torch.sin(torch.arange(p.numel()) * 1.7).view_as(p))
    criterion = nn.NLLLoss()
    hidden = model.init_hidden(8) if args.model == "LSTM" else None

    model.train()
    for i in range(0, data.size(0) - 1 - args.bptt, args.bptt):
        x, y = data[i : i + args.bptt], data[i + 1 : i + 1 + args.bptt].view(-1)
        model.zero_grad()
        if hidden is None:
            output = model(x)
        else:
            hidden = repackage_hidden(hidden)
            output, hidden = model(x, hidden)
        loss = criterion(output, y)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        for p in model.parameters():
            if p.grad is not None:  # Transformer has a decoder, too
                p.data.add_(p.grad, alpha=-args.lr)
        print(f"loss: {loss.item():.6f} norm: {norm:.6f}")

    with open(args.save, "wb") as f:
        torch.save(model, f)
    with open(args.save, "rb") as f:
        again = torch.load(f, weights_only=False)
    same = all(bool((a == b).all()) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    tied = args.tied and again.decoder.weight is again.encoder.weight
    print("again the same:", same, "tied:", tied)


if __name__ == "__main__":
    main()

"""A small DCGAN with two optimizers, as people write it for PyTorch."""

import argparse

import torch
import torch.backends.cudnn as cudnn
import torch.nn as nn
import torch.nn.parallel
import torch.optim as optim
import torch.utils.data

parser = argparse.ArgumentParser()
parser.add_argument("--nz", type=int, default=8)
parser.add_argument("--steps", type=int, default=12)
parser.add_argument("--lr", type=float, default=0.01)
parser.add_argument(
    "--same-start", action="store_true", help="weights and noise that depend on no random number"
)
parser.add_argument("--out", default="", help="where to write the last images")
opt = parser.parse_args()

cudnn.benchmark = True
torch.manual_seed(7)
device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
ngpu = 1


def weights_init(m):
    classname = m.__class__.__name__
    if classname.find("Conv") != -1:
        torch.nn.init.normal_(m.weight, 0.0, 0.1)
    elif classname.find("BatchNorm") != -1:
        torch.nn.init.normal_(m.weight, 1.0, 0.02)
        torch.nn.init.zeros_(m.bias)


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(opt.nz, 16, 4, 1, 0, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(True),
            nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(True),
            nn.ConvTranspose2d(8, 1, 4, 2, 1, bias=False),
            nn.Tanh(),
        )

    def forward(self, input):
        if input.is_cuda and ngpu > 1:
            return nn.parallel.data_parallel(self.main, input, range(ngpu))
        return self.main(input)


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(1, 8, 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(8, 16, 4, 2, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(16, 1, 4, 1, 0, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, input):
        return self.main(input).view(-1, 1).squeeze(1)


netG, netD = Generator().to(device), Discriminator().to(device)
netG.apply(weights_init)
netD.apply(weights_init)
if opt.same_start:
    for p in [*netG.parameters(), *netD.parameters()]:
        p.data.copy_(0.2 * torch.sin(torch.arange(p.numel()) * 1.3 + 1).view_as(p))


def noise_of(count, step):
    if opt.same_start:
        return 2 * torch.sin(torch.arange(count * opt.nz) * (step + 1.1)).view(count, opt.nz, 1, 1)
    return torch.randn(count, opt.nz, 1, 1, device=device)


# Discs of several sizes.
y, x = torch.meshgrid(torch.arange(16.0) - 7.5, torch.arange(16.0) - 7.5, indexing="ij")
radii = torch.linspace(2, 7, 32).view(-1, 1, 1, 1)
images = torch.where((x**2 + y**2).unsqueeze(0).unsqueeze(0) < radii**2, 1.0, -1.0)
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images), batch_size=8)

criterion = nn.BCELoss()
optimizerD = optim.Adam(netD.parameters(), lr=opt.lr, betas=(0.5, 0.999))
optimizerG = optim.Adam(netG.parameters(), lr=opt.lr, betas=(0.5, 0.999))
real_label, fake_label, step = 1, 0, 0
while step < opt.steps:
    for data in loader:
        netD.zero_grad()
        real = data[0].to(device)
        label = torch.full((real.size(0),), real_label, dtype=real.dtype, device=device)
        errD_real = criterion(netD(real), label)
        errD_real.backward()
        fake = netG(noise_of(real.size(0), step))
        label.fill_(fake_label)
        errD_fake = criterion(netD(fake.detach()), label)
        errD_fake.backward()
        optimizerD.step()

        netG.zero_grad()
        label.fill_(real_label)
        errG = criterion(netD(fake), label)
        errG.backward()
        optimizerG.step()
        print(f"loss: {(errD_real + errD_fake).item():.6f} generator: {errG.item():.6f}")
        step += 1

if opt.out:
    from torchvision.utils import save_image

    save_image(fake.detach(), opt.out, normalize=True)
torch.save({"G": netG.state_dict(), "D": netD.state_dict(), "optD": optimizerD.state_dict()}, "gan.pt")
netG.load_state_dict(torch.load("gan.pt")["G"])

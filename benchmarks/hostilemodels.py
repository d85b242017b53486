"""Model files for `python -m benchmarks.hostile`: what comes after a valid one's lines, or bytes in its place."""

from __future__ import annotations

BYTES: dict[str, bytes] = {
    "no text": b"\xff\xfe\x00m",
    "null bytes": b"model = 1\x00",
    "empty": b"",
    "utf-7": b"# coding: utf-7\nmodel = 1",
    "unknown coding": b"# coding: nothing\nmodel = 1",
    "deep": b"model = " + b"(" * 5000 + b")" * 5000,
    "long number": b"model = " + b"9" * 5000,
}
TEXT = r"""
## exits
raise SystemExit(0)
## interrupts
raise KeyboardInterrupt
## ends in a base exception
class E(BaseException): pass
raise E('x' * 10**6)
## raises controls
raise ValueError('\x1b[31m\u202e\ud800' * 1000)
## raises pixels
raise ValueError(images)
## raises what cannot be printed
class E(Exception):
    def __str__(self): raise self
raise E
## recurses
def f(): return f()
f()
## syntax
(
## no model
del model
## no data
del train_data
## model is text
model = 'model'
## model is a class
model = nn.Module
## model fails
class M(nn.Module):
    def forward(self, x): raise RuntimeError('\x1b[31m' * 10**6)
model = M()
## model exits
class M(nn.Module):
    def forward(self, x): raise SystemExit
model = M()
## model gives nothing
class M(nn.Module):
    def forward(self, x): return None
model = M()
## model gives a number
class M(nn.Module):
    def forward(self, x): return x.sum()
model = M()
## model gives nan
class M(nn.Sequential):
    def forward(self, x): return super().forward(x) * torch.nan
model = M(*model)
## model without parameters
model = nn.Flatten()
## model of complex numbers
model = model.to(torch.complex64)
## model of whole numbers
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).to(torch.int8) if 0 else nn.Linear(1, 1).half()
## model of doubles
model = model.double()
## model of inf
model[0].weight.data.fill_(torch.inf)
## model without gradients
model.requires_grad_(False)
## lazy model
model = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
## meta model
model = model.to('meta')
## one logit
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
## many logits
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 100_000))
## factory exits
def model(): raise SystemExit
## factory wants more
def model(a): return 1
## factory of a factory
def model(): return model
## data is empty
train_data = TensorDataset(images[:0], labels[:0])
## data of one
train_data = TensorDataset(images[:1], labels[:1])
## data of no pixels
train_data = TensorDataset(images[..., :0], labels)
## data of nan
train_data = TensorDataset(images * torch.nan, labels)
## data of bytes as floats
train_data = TensorDataset(images * 255, labels)
## data normalised
train_data = TensorDataset(images * 2 - 1, labels)
## data of complex numbers
train_data = TensorDataset(images.to(torch.complex64), labels)
## labels of floats
train_data = TensorDataset(images, labels * 0.5)
## labels below nought
train_data = TensorDataset(images, -labels)
## labels without end
train_data = TensorDataset(images, labels + 2**62)
## labels of rows
train_data = TensorDataset(images, labels[:, None].repeat(1, 3))
## data lies of its length
class D:
    def __len__(self): return 10**18
    def __getitem__(self, i): return images[i % 80], 0
train_data = D()
## data of negative length
class D:
    def __len__(self): return -1
    def __getitem__(self, i): return images[0], 0
train_data = D()
## data fails late
class D:
    def __len__(self): return 80
    def __getitem__(self, i): return (images[i], i % 2) if i < 70 else 1 / 0
train_data = D()
## data exits
class D:
    def __len__(self): return 80
    def __getitem__(self, i): raise SystemExit
train_data = D()
## data without end
def train_data():
    while True: yield images[0], 0
## data of mixed sizes
train_data = [(images[k][:, : 4 + k % 3], k % 2) for k in range(80)]
## data of texts
train_data = ['\x1b[31m'] * 80
## data of dicts
train_data = [{'\x1b': images[k], 'label': 'x'} for k in range(80)]
## data of itself
train_data = []
train_data.append((train_data, 0))
## classes of controls
classes = ['\x1b[31m\u202e', '<script>']
## classes too few
classes = ['one']
## classes are a number
classes = 2
## classes are numbers
classes = [1, float('nan')]
## classes are long
classes = ['x' * 10**6, 'y']
## mean of nan
mean, std = float('nan'), 1
## std of nought
mean, std = 0, 0
## mean of texts
mean = 'nan'
## groups of controls
groups = ['\x1b[31m'] * 80
## groups too few
groups = [1]
## groups cannot be compared
groups = [object() if k % 2 else {} for k in range(80)]
## loss of nan
loss = lambda a, b: (a * torch.nan).sum()
## loss exits
def loss(a, b): raise SystemExit
## loss is text
loss = 'mse'
## device is nowhere
device = '\x1b[31m'
## registers twice
from leakaudit.protocol.registry import register_attack
register_attack(int)
"""
MODELS: dict[str, str | bytes] = {
    **BYTES,
    **{part.partition("\n")[0]: part.partition("\n")[2] for part in TEXT.strip().removeprefix("## ").split("\n## ")},
}

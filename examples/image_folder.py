"""Pictures in a folder for each class: train, see the hardest by path, and leave a tenth of them out."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

import prunesampler as ps

FOLDER = Path("runs/image_folder")

images, labels = load_digits(return_X_y=True)
for row, (image, label) in enumerate(zip(images[:600], labels, strict=False)):
    path = FOLDER / "pictures" / f"digit {label}" / f"{row:03}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((image.reshape(8, 8) * 15).astype("uint8")).save(path)

to_tensor = transforms.Compose([transforms.Grayscale(), transforms.ToTensor()])
dataset = ImageFolder(str(FOLDER / "pictures"), to_tensor)
torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

loader = DataLoader(dataset, batch_size=32, shuffle=True)
options = {"keep": 0.9, "method": "bottom", "score_epochs": 4}  # without the hardest tenth
loader = ps.attach(loader, model, **options, save_dir=FOLDER, overwrite=True)
for _ in range(6):
    for x, y in loader:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

print(loader.pruning.table.hardest(5))
print(loader.pruning.coreset.summary())

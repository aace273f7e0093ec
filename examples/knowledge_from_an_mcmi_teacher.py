"""Knowledge distillation of few images, from a teacher that MCMI has fine-tuned.

`cmidd` trains a teacher on scikit-learn's digits, and fine-tunes it by MCMI: the outputs of a class
then spread more around their mean, and tell more of an image than its class. Students of plain
torch see 5 % of the digits and learn what each teacher makes of them. The script prints, for both
teachers, their accuracy on test images and the CMI of their outputs, and how accurate their
students are. `bench.mcmi` measures that with more seeds, beside a teacher that is trained as long
by cross-entropy alone.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

import cmidd
from cmikernels import fused_cmi

TEMPERATURE, OF_LABELS, OF_TEACHER = 4.0, 0.1, 0.9  # as published
STUDENTS = 3


def teachers(data: cmidd.Dataset, folder: Path) -> dict[str, nn.Module]:
    """A plain teacher and what MCMI makes of it."""
    options = cmidd.BankOptions("convnet:depth=2,width=32", networks=1, epochs=15, lr=0.05)
    plain = cmidd.train_bank(folder / "plain", data, options, "cpu", say=lambda _: None)
    options = cmidd.BankOptions(objective="mcmi", from_bank=folder / "plain", epochs=10, lr=0.005)
    tuned = cmidd.train_bank(folder / "mcmi", data, options, "cpu", say=lambda _: None)
    return {"plain teacher": plain[0], "MCMI teacher": tuned[0]}


def student_of(teacher: nn.Module, images: Tensor, labels: Tensor, seed: int) -> nn.Module:
    """A small network that learns labels, and what the teacher makes of the images."""
    torch.manual_seed(seed)
    student = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(144, 10)
    )
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    known = log_softmax(teacher(images) / TEMPERATURE, 1)
    for _ in range(200):
        optimizer.zero_grad()
        logits = student(images)
        found = log_softmax(logits / TEMPERATURE, 1)
        apart = kl_div(found, known, reduction="batchmean", log_target=True) * TEMPERATURE**2
        loss = OF_LABELS * cross_entropy(logits, labels) + OF_TEACHER * apart
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return student


data = cmidd.load_dataset("digits")
test, test_labels = data.to_input(data.test.images), data.test.labels
few = torch.cat([data.train.of_class(c)[: round(0.05 * len(data.train) / 10)] for c in range(10)])
images, labels = data.to_input(few), torch.arange(10).repeat_interleave(len(few) // 10)


def accuracy(network: nn.Module) -> float:
    """Share of test images right."""
    return float((network(test).argmax(1) == test_labels).float().mean())


with TemporaryDirectory() as folder:
    for name, teacher in teachers(data, Path(folder)).items():
        cmi = fused_cmi(teacher(test), test_labels)
        students = [student_of(teacher, images, labels, seed) for seed in range(STUDENTS)]
        mean = sum(map(accuracy, students)) / STUDENTS
        print(f"{name}: CMI {cmi:.4f} accuracy {accuracy(teacher):.1%}")
        print(f"students of the {name}: accuracy {mean:.1%}")

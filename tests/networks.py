"""What the tests that train small networks of their own share."""
from mindspore import nn, ops


class Net(nn.Cell):
    """Images `[n, 2, 6, 6]` to three classes, without batch norm: a batch's gradient is the mean of its pieces'."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, 3)
        self.conv2 = nn.Conv2d(6, 8, 3, 2)
        self.fc = nn.Dense(8, 3)

    def construct(self, x):
        return self.fc(ops.relu(self.conv2(ops.relu(self.conv1(x)))).mean((2, 3)))


class WithLoss(nn.Cell):
    """A network with cross-entropy, as a Cell from a batch to a scalar."""

    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, x, y):
        return ops.cross_entropy(self.network(x), y)

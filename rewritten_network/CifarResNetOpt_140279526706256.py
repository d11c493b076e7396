import sys
import mindspore
from mindspore import nn
from mindspore.nn import Cell
from mindspore.ops import functional as F
#
#
sys.path.insert(0, '/tmp/w/v311/lib/python3.11/site-packages/mindspore/ops/function')
from mindspore.ops.auto_generate import relu_op, inplace_relu_op
from mindspore.ops.function.nn_func import inplace_relu_op as inplace_relu_op_1
from mindspore.ops.function.nn_func import relu_op as relu_op_1
from mindspore.train.amp import amp_cast

def relu_opt(input, inplace=False):
    if inplace:
        inplace_relu_op_var = inplace_relu_op_1(input)
        return inplace_relu_op_var
    input = amp_cast(input, mindspore.float16)
    relu_op_var = relu_op_1(input)
    relu_op_var = amp_cast(relu_op_var, mindspore.float32)
    return relu_op_var
#
sys.path.insert(0, '/tmp/w/snap2/rpg_ms/cells')
from rpg_ms.cells.masked import _Masked

class _MaskedOpt(_Masked):

    def __init__(self):
        for key, value in _Masked.__dict__.items():
            if not key.startswith('__'):
                setattr(_MaskedOpt, key, value)
#
sys.path.insert(0, '/tmp/w/v311/lib/python3.11/site-packages/mindspore/nn/layer')
from mindspore.nn.cell import Cell
from mindspore.nn.layer.conv import _Conv

class _ConvOpt(_Conv, Cell):

    def __init__(self):
        Cell.__init__(self)
        for key, value in _Conv.__dict__.items():
            if not key.startswith('__'):
                setattr(_ConvOpt, key, value)
#
sys.path.insert(0, '/tmp/w/v311/lib/python3.11/site-packages/mindspore/nn/layer')
from mindspore.nn.layer.conv import Conv2d

class Conv2dOpt(Conv2d, _ConvOpt):

    def __init__(self):
        _ConvOpt.__init__(self)
        for key, value in Conv2d.__dict__.items():
            if not key.startswith('__'):
                setattr(Conv2dOpt, key, value)
#
sys.path.insert(0, '/tmp/w/v311/lib/python3.11/site-packages/mindspore/nn/layer')
from mindspore.nn.layer.normalization import _BatchNorm

class _BatchNormOpt(_BatchNorm, Cell):

    def __init__(self):
        Cell.__init__(self)
        for key, value in _BatchNorm.__dict__.items():
            if not key.startswith('__'):
                setattr(_BatchNormOpt, key, value)
#
sys.path.insert(0, '/tmp/w/v311/lib/python3.11/site-packages/mindspore/nn/layer')
from mindspore.nn.layer.basic import Dense

class DenseOpt(Dense, Cell):

    def __init__(self):
        Cell.__init__(self)
        for key, value in Dense.__dict__.items():
            if not key.startswith('__'):
                setattr(DenseOpt, key, value)
#
sys.path.insert(0, '/tmp/w/snap2/rpg_ms/models')
from mindspore import nn, ops
from mindspore.common.initializer import HeNormal
from rpg_ms.models.resnet_cifar import BasicBlock
#
sys.path.insert(0, '/tmp/w/snap2/rpg_ms/models')
#
sys.path.insert(0, '/tmp/w/snap2/rpg_ms/models')

class BasicBlockOpt(BasicBlock, nn.Cell):

    def __init__(self, obj):
        nn.Cell.__init__(self)
        for key, value in obj.__dict__.items():
            setattr(self, key, value)
        self.conv1 = MaskedConv2dOpt(self.conv1)
        self.bn1 = BatchNorm2dOpt(self.bn1)
        self.conv2 = MaskedConv2dOpt(self.conv2)
        self.bn2 = BatchNorm2dOpt(self.bn2)

    def construct(self, x):
        conv1_var = self.conv1(x)
        bn1_var = self.bn1(conv1_var)
        out = relu_opt(bn1_var)
        conv2_var = self.conv2(out)
        out = self.bn2(conv2_var)
        compare_var_1 = self.stride > 1
        if compare_var_1:
            x = x[:, :, ::self.stride, ::self.stride]
        compare_var = self.pad is not None
        if compare_var:
            x = self.pad(x)
        add_var = out + x
        relu_var = relu_opt(add_var)
        return relu_var
#
sys.path.insert(0, '/tmp/w/snap2/rpg_ms/cells')
from rpg_ms.cells.masked import MaskedDense

class MaskedDenseOpt(MaskedDense, _MaskedOpt, DenseOpt):

    def __init__(self, obj):
        _MaskedOpt.__init__(self)
        DenseOpt.__init__(self)
        for key, value in obj.__dict__.items():
            setattr(self, key, value)
#
sys.path.insert(0, '/tmp/w/v311/lib/python3.11/site-packages/mindspore/nn/layer')
from mindspore.ops.primitive import _primexpr
from mindspore.nn.layer.normalization import BatchNorm2d

class BatchNorm2dOpt(BatchNorm2d, _BatchNormOpt):

    def __init__(self, obj):
        _BatchNormOpt.__init__(self)
        for key, value in obj.__dict__.items():
            setattr(self, key, value)
        self._check_input_dim = obj.__class__._check_input_dim

    @staticmethod
    @_primexpr
    def _check_input_dim(shape, cls_name):
        dim = len(shape)
        _check_dim(dim, 4, cls_name)
#
sys.path.insert(0, '/tmp/w/snap2/rpg_ms/cells')
from rpg_ms.cells.masked import MaskedConv2d

class MaskedConv2dOpt(MaskedConv2d, _MaskedOpt, Conv2dOpt):

    def __init__(self, obj):
        _MaskedOpt.__init__(self)
        Conv2dOpt.__init__(self)
        for key, value in obj.__dict__.items():
            setattr(self, key, value)
#
sys.path.insert(0, '/tmp/w/snap2/rpg_ms/models')
from rpg_ms.models.resnet_cifar import CifarResNet

class CifarResNetOpt(CifarResNet, nn.Cell):

    def __init__(self, obj):
        nn.Cell.__init__(self)
        for key, value in obj.__dict__.items():
            setattr(self, key, value)
        self.conv1 = MaskedConv2dOpt(self.conv1)
        self.bn1 = BatchNorm2dOpt(self.bn1)
        self.layer1[0] = BasicBlockOpt(self.layer1[0])
        self.layer2[0] = BasicBlockOpt(self.layer2[0])
        self.layer3[0] = BasicBlockOpt(self.layer3[0])
        self.linear = MaskedDenseOpt(self.linear)
        self._stage = obj.__class__._stage

    @staticmethod
    def _stage(channels_in, channels_out, stride, blocks):
        first = BasicBlock(channels_in, channels_out, stride)
        return nn.SequentialCell([first] + [BasicBlock(channels_out, channels_out, 1) for _ in range(blocks - 1)])

    def construct(self, x):
        conv1_var = self.conv1(x)
        bn1_var = self.bn1(conv1_var)
        x = relu_opt(bn1_var)
        layer1_var = self.layer1(x)
        layer2_var = self.layer2(layer1_var)
        x = self.layer3(layer2_var)
        tuple_var = (2, 3)
        mean_var = x.mean(tuple_var)
        linear_var = self.linear(mean_var)
        return linear_var
#
"""Compaction: an ONNX network without what its zeros made dead, for any dense runtime.

A filter that is all zero gives the same value everywhere, and a channel that no weight reads may be left out. What can go
is found by following single channels through the graph: forwards which of them are constant, backwards which are needed.
Nothing is approximated. Channels that an addition joins go together or stay together.

Followed are convolutions (depthwise too), dense layers, batch norms, pooling, additions, products, channel padding,
concatenation and activations. Any other operator keeps all channels of what it reads.
"""
from __future__ import annotations

import numpy as np

ACTIVATIONS = {"Relu": lambda x: np.maximum(x, 0), "Identity": lambda x: x, "Sigmoid": None, "HardSigmoid": None,
               "HardSwish": None, "LeakyRelu": None, "Elu": None, "Tanh": None, "Erf": None, "Clip": None}
LAYERS = ("Conv", "Gemm", "MatMul")
POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean")


def compact(model, multiple_of=1):
    """The same network with fewer channels: `(model, multiply_adds_before, multiply_adds_after)`.

    Args:
        model: `onnx.ModelProto` with weights among its initializers; it is not changed.
        multiple_of: numbers of channels are rounded up to a multiple of it, as far as the network had them:
            runtimes that compute with blocks of channels are slow with others.

    Returns:
        A new `onnx.ModelProto`, and the multiply-adds of one image in its convolutions and dense layers, as a dense
        runtime executes them.
    """
    import onnx

    graph = _Graph(_with_shapes(model))
    graph.follow()
    graph.find_needed()
    graph.round_up(multiple_of)
    compacted = onnx.ModelProto()
    compacted.CopyFrom(model)
    graph.rewrite(compacted.graph)
    del compacted.graph.value_info[:]  # of the old shapes
    onnx.checker.check_model(compacted)
    return compacted, graph.multiply_adds(), _Graph(_with_shapes(compacted)).multiply_adds()


def _with_shapes(model):
    """A copy that tells the shapes of its tensors: of one image, where the network takes any number."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in (*copy.graph.input, *copy.graph.output):
        for dimension in value.type.tensor_type.shape.dim[:1]:
            dimension.dim_value = dimension.dim_value or 1
    return onnx.shape_inference.infer_shapes(copy)


class _Graph:
    """What is known of a graph's channels.

    Attributes:
        channels: of a tensor, which class each of its channels belongs to; channels of one class go together.
        constant: of a tensor, the value of each channel that has the same one everywhere, else NaN.
        needed: of a class, whether it stays.
    """

    def __init__(self, model):
        import onnx

        self.nodes = list(model.graph.node)
        self.arrays = {x.name: onnx.numpy_helper.to_array(x) for x in model.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.arrays[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
        self.shapes = {x.name: [d.dim_value for d in x.type.tensor_type.shape.dim]
                       for x in (*model.graph.input, *model.graph.output, *model.graph.value_info)}
        self.inputs = [x.name for x in model.graph.input if x.name not in self.arrays]
        self.outputs = [x.name for x in model.graph.output]
        self.channels, self.constant = {}, {}
        self._class_of = []
        self.pinned = []  # classes that something reads as a whole

    # ------------------------------------------------------------------------------------------------
    # Forwards
    # ------------------------------------------------------------------------------------------------

    def follow(self):
        for name in self.inputs:
            self._pin(self._fresh(name, self._width(name)))
        for node in self.nodes:
            if all(name in self.arrays or not name for name in node.input):
                continue  # made of constants alone
            if not self._follow(node):
                for name in node.input:
                    if name in self.channels:
                        self._pin(self.channels[name])
                for name in node.output:
                    self._pin(self._fresh(name, self._width(name)))
        for name in self.outputs:
            self._pin(self.channels[name])

    def _follow(self, node):
        """Whether the node is one that single channels can be followed through."""
        kind, out = node.op_type, node.output[0]
        known = [name for name in node.input if name in self.channels]
        if kind in LAYERS:
            layer = self.layer(node)
            if layer is None or known != [node.input[0]]:
                return False
            weight, bias, padded = layer
            source = self.constant[node.input[0]]
            if kind == "Conv" and _attribute(node, "group", 1) != 1:
                if weight.shape[1] != 1 or len(weight) != len(source):
                    return False  # neither dense nor depthwise
                summed = weight.reshape(len(weight), -1).sum(1, dtype=np.float64)
                exact = (source == 0) | (~np.isnan(source) & (not padded))
                self.channels[out] = self.channels[node.input[0]]
                self.constant[out] = np.where(exact, bias + summed * np.where(exact, source, 0),
                                              np.where(weight.reshape(len(weight), -1).any(1), np.nan, bias))
                return True
            varies = ~self._folds(source, padded)
            value = bias + _summed(weight) @ np.where(varies, 0, source)
            self._fresh(out, len(weight))
            self.constant[out] = np.where((_reads(weight) & varies).any(1), np.nan, value)
            return True
        if kind == "BatchNormalization" and all(name in self.arrays for name in node.input[1:5]):
            scale, shift = self._norm(node)
            return self._pass(node.input[0], out, scale * self.constant[node.input[0]] + shift)
        if kind in ACTIVATIONS and len(known) == 1 and known[0] == node.input[0]:
            function, source = ACTIVATIONS[kind], self.constant[known[0]]
            return self._pass(known[0], out, function(source) if function else np.full(len(source), np.nan))
        if kind in POOLS and len(known) == 1 and self._keeps_channels(known[0], out):
            source = self.constant[known[0]]
            mixes = kind == "AveragePool" and any(_attribute(node, "pads", []))  # with zeros, at the border
            return self._pass(known[0], out, np.where(source == 0, 0, np.nan) if mixes else source)
        if kind in ("Flatten", "Reshape", "Squeeze") and len(known) == 1:
            width, shape = self._width(known[0]), self.shapes.get(out, [])
            if not width or len(shape) != 2 or shape[0] != self.shapes[known[0]][0]:
                return False
            repeats, rest = divmod(shape[1], width)
            if rest or not repeats:
                return False
            self.channels[out] = np.repeat(self.channels[known[0]], repeats)
            self.constant[out] = np.repeat(self.constant[known[0]], repeats)
            return True
        if kind in ("Add", "Mul") and len(known) == 2:
            a, b = (self.channels[name] for name in known)
            if len(a) != len(b) or len(self.shapes[known[0]]) != len(self.shapes[known[1]]):
                return False
            for one, other in zip(a, b):
                self._join(one, other)
            x, y = (self.constant[name] for name in known)
            value = x + y if kind == "Add" else np.where((x == 0) | (y == 0), 0, x * y)
            return self._pass(known[0], out, value)
        if kind == "Pad" and len(known) == 1:
            pads = self._pads(node)
            if pads is None:
                return False
            before, after = pads
            source = known[0]
            fresh = self._fresh(out, before + after)
            self.channels[out] = np.concatenate([fresh[:before], self.channels[source], fresh[before:]])
            self.constant[out] = np.concatenate([np.zeros(before), self.constant[source], np.zeros(after)])
            return True
        if kind == "Concat" and _attribute(node, "axis", 0) == 1 and len(known) == len(node.input):
            self.channels[out] = np.concatenate([self.channels[name] for name in known])
            self.constant[out] = np.concatenate([self.constant[name] for name in known])
            return True
        return False

    def _pass(self, source, out, constant):
        self.channels[out], self.constant[out] = self.channels[source], constant
        return True

    def _fresh(self, name, width):
        first = len(self._class_of)
        self._class_of += range(first, first + width)
        self.channels[name] = np.arange(first, first + width)
        self.constant[name] = np.full(width, np.nan)
        return self.channels[name]

    def _root(self, one):
        while self._class_of[one] != one:
            self._class_of[one] = one = self._class_of[self._class_of[one]]
        return one

    def _join(self, one, other):
        self._class_of[self._root(int(one))] = self._root(int(other))

    def _roots(self, name):
        return np.array([self._root(int(one)) for one in self.channels[name]], int)

    def _pin(self, classes):
        self.pinned += [int(one) for one in classes]

    # ------------------------------------------------------------------------------------------------
    # Backwards
    # ------------------------------------------------------------------------------------------------

    def find_needed(self):
        self.needed = np.zeros(len(self._class_of), bool)
        self.needed[[self._root(one) for one in self.pinned]] = True
        layers = []  # of each: its channels out and in, and which varying one reads which varying one
        for node in reversed(self.nodes):
            if self._is_dense(node):
                weight, _, padded = self.layer(node)
                computed = np.isnan(self.constant[node.output[0]])
                varies = ~self._folds(self.constant[node.input[0]], padded)
                layers.append((self._roots(node.output[0]), self._roots(node.input[0]),
                               _reads(weight) & computed[:, None] & varies))
        count = -1
        while count != (count := np.count_nonzero(self.needed)):
            for outputs, inputs, reads in layers:
                self.needed[inputs[reads[self.needed[outputs]].any(0)]] = True
            for name in self.channels:  # a tensor has a channel at least
                roots = self._roots(name)
                if len(roots) and not self.needed[roots].any():
                    self.needed[roots[0]] = True

    def round_up(self, multiple_of):
        """Keep channels that could go, until every tensor has a multiple of so many, or all it had."""
        count = -1
        while count != (count := np.count_nonzero(self.needed)):
            for name in self.channels:
                roots = self._roots(name)
                spare = np.unique(roots[~self.needed[roots]])
                self.needed[spare[:-int(self.needed[roots].sum()) % multiple_of]] = True

    def _is_dense(self, node):
        """Whether it is a layer whose outputs and inputs are different channels, both followed."""
        return (_attribute(node, "group", 1) == 1 and self.layer(node) is not None
                and node.input[0] in self.channels)

    @staticmethod
    def _folds(constant, padded):
        """Which inputs of a layer add a constant to its outputs; at a padded border only zeros do."""
        return constant == 0 if padded else ~np.isnan(constant)

    # ------------------------------------------------------------------------------------------------
    # The new graph
    # ------------------------------------------------------------------------------------------------

    def rewrite(self, graph):
        import onnx

        new = {}

        def put(node, place, array):
            name = f"{node.output[0]}.{place}"
            new[name] = np.ascontiguousarray(array)
            while len(node.input) <= place:
                node.input.append("")
            node.input[place] = name

        for node in graph.node:
            if not any(name in self.channels for name in node.input):
                continue
            if self.layer(node) is not None:
                self._rewrite_layer(node, put)
            elif node.op_type == "BatchNormalization" and not self._kept(node.input[0]).all():
                kept = self._kept(node.input[0])
                for place in range(1, 5):
                    put(node, place, self.arrays[node.input[place]][kept])
            elif node.op_type == "Pad" and self._pads(node) is not None:
                before, after = self._pads(node)
                kept = self._kept(node.output[0])
                pads = self.arrays[node.input[1]].copy()
                rank = len(pads) // 2
                pads[1], pads[rank + 1] = kept[:before].sum(), kept[len(kept) - after:].sum() if after else 0
                put(node, 1, pads)
            elif node.op_type == "Reshape" and not self._kept(node.input[0]).all():
                put(node, 1, np.array([0, -1], np.int64))
        used = {name for node in graph.node for name in node.input}
        kept = [x for x in graph.initializer if x.name in used and x.name not in new]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in new.items())
        names = {x.name for x in graph.initializer}
        inputs = [x for x in graph.input if x.name in self.inputs or x.name in names]
        del graph.input[:]
        graph.input.extend(inputs)

    def _rewrite_layer(self, node, put):
        weight, bias, padded = self.layer(node)
        source, out = self._kept(node.input[0]), self._kept(node.output[0])
        if source.all() and out.all():
            return
        if node.op_type == "Conv" and _attribute(node, "group", 1) != 1:
            put(node, 1, weight[out])
            next(a for a in node.attribute if a.name == "group").i = int(out.sum())
            if len(node.input) > 2:
                put(node, 2, self.arrays[node.input[2]][out])
            return
        constant = self.constant[node.input[0]]
        gone = ~source & self._folds(constant, padded)
        bias = bias + _summed(weight)[:, gone] @ constant[gone]
        weight = weight[out][:, source]
        if node.op_type == "Conv":
            put(node, 1, weight)
        else:
            put(node, 1, weight if _attribute(node, "transB", 0) else weight.T)
        if len(node.input) > 2 or bias.any():
            put(node, 2, bias[out].astype(weight.dtype))

    def _kept(self, name):
        return self.needed[self._roots(name)]

    # ------------------------------------------------------------------------------------------------
    # Reading nodes
    # ------------------------------------------------------------------------------------------------

    def layer(self, node):
        """`(weight [out, in, ...], bias [out] float64, whether it pads)` of a convolution or dense layer, or None."""
        if node.op_type not in LAYERS or node.input[1] not in self.arrays:
            return None
        weight = self.arrays[node.input[1]]
        if node.op_type == "Conv":
            automatic = _attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
            padded = automatic or any(_attribute(node, "pads", []))
        else:
            if weight.ndim != 2 or len(self.shapes.get(node.input[0], [])) != 2 or _attribute(node, "transA", 0) or \
                    _attribute(node, "alpha", 1.0) != 1 or _attribute(node, "beta", 1.0) != 1:
                return None
            if node.op_type == "MatMul" or not _attribute(node, "transB", 0):
                weight = weight.T
            padded = node.op_type == "MatMul"  # like a padded convolution it can take no constant, having no bias
        if _attribute(node, "group", 1) == 1 and len(self.channels.get(node.input[0], ())) != weight.shape[1]:
            return None  # shapes that the graph does not tell
        bias = np.zeros(len(weight))
        if len(node.input) > 2 and node.input[2]:
            if node.input[2] not in self.arrays:
                return None
            bias = np.broadcast_to(self.arrays[node.input[2]].reshape(-1), bias.shape).astype(np.float64)
        return weight, bias, padded

    def multiply_adds(self):
        """Of one image, in all layers."""
        total, batch = 0, self.shapes[self.inputs[0]][0]
        for node in self.nodes:
            if node.op_type in LAYERS and node.input[1] in self.arrays:
                shape = self.shapes[node.output[0]]
                # A sequence comes to its dense layers as [batch, length, channels] or as [batch * length, channels].
                positions = np.prod(shape[2:]) if node.op_type == "Conv" else np.prod(shape[:-1]) // batch
                total += int(positions) * self.arrays[node.input[1]].size
        return total

    def _norm(self, node):
        scale, shift, mean, variance = (self.arrays[name].astype(np.float64) for name in node.input[1:5])
        factor = scale / np.sqrt(variance + _attribute(node, "epsilon", 1e-5))
        return factor, shift - mean * factor

    def _pads(self, node):
        """Zero channels that a Pad puts before and after, if channels are all that it pads; else None."""
        mode = _attribute(node, "mode", b"constant")
        value = self.arrays.get(node.input[2], np.ones(1)) if len(node.input) > 2 and node.input[2] else np.zeros(1)
        if mode != b"constant" or value.any() or len(node.input) < 2 or node.input[1] not in self.arrays:
            return None
        pads = self.arrays[node.input[1]]
        rank = len(pads) // 2
        others = [int(x) for i, x in enumerate(pads) if i % rank != 1]
        if any(others) or min(pads) < 0 or (len(node.input) > 3 and node.input[3]):
            return None
        return int(pads[1]), int(pads[rank + 1])

    def _keeps_channels(self, source, out):
        before, after = self.shapes.get(source, []), self.shapes.get(out, [])
        return len(before) == 4 and len(after) >= 2 and before[1] == after[1]

    def _width(self, name):
        shape = self.shapes.get(name, [])
        return shape[1] if len(shape) > 1 else 0


def _reads(weight):
    """Which output of a layer has a weight for which input: bool `[out, in]`."""
    return weight.reshape(*weight.shape[:2], -1).any(2)


def _summed(weight):
    """What an output gets from an input that is 1 everywhere: float64 `[out, in]`."""
    return weight.reshape(*weight.shape[:2], -1).sum(2, dtype=np.float64)


def _attribute(node, name, default):
    import onnx

    for attribute in node.attribute:
        if attribute.name == name:
            return onnx.helper.get_attribute_value(attribute)
    return default

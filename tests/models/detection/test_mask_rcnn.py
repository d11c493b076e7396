"""A whole small network, against numbers that torchvision gave with the same weights."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

import detection_cases as cases
from golden_cases import FOLDER
from rpg_ms.models.detection import DetectionLoss, DetectionSettings, create_detector
from rpg_ms.weights import pytorch_names

GOLDEN = np.load(FOLDER / "detection.npz")
LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask")


class Losses(nn.Cell):
    """The losses and their sum's gradient."""

    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.network = network
        self.with_aux = ms.value_and_grad(self.total, None, network.trainable_params(), has_aux=True)

    def total(self, *batch):
        losses = self.network.losses(*batch)
        return losses[0] + losses[1] + losses[2] + losses[3] + losses[4], losses

    def construct(self, *batch):
        return self.with_aux(*batch)


def network():
    """The network of the recorded numbers, with their weights."""
    detector = create_detector(
        "maskrcnn_resnet_small", cases.CLASSES, cases.IMAGE_SIZE, cases.WIDTH, DetectionSettings(**cases.SETTINGS)
    )
    reset(detector)
    return detector


def reset(detector):
    for name, theirs in pytorch_names(detector).items():
        parameter = next(p for p in detector.get_parameters() if p.name == name)
        parameter.set_data(ms.Tensor(cases.weight(theirs, parameter.shape)))


@pytest.fixture(scope="module")
def compiled():
    """`(network, losses)`: both compiled once for all tests, in graph mode."""
    ms.set_context(mode=ms.GRAPH_MODE)
    detector = network()
    return detector, Losses(detector)


def batch(detector, **changes):
    """The recorded batch with other arrays in the place of some."""
    arrays = dict(zip(("images", "valid", "boxes", "labels", "masks"), cases.batch()))
    arrays = {**arrays, "keys": cases.keys(detector.keys), **changes}
    return [ms.Tensor(array) for array in arrays.values()]


def losses_of(compiled, **changes):
    """The five losses, and `{torchvision's name: gradient}`, from the recorded weights."""
    detector, losses = compiled
    reset(detector)
    detector.set_train()
    (_, values), gradients = losses(*batch(detector, **changes))
    names = pytorch_names(detector)
    parameters = detector.trainable_params()
    return [float(value.asnumpy()) for value in values], {
        names[parameter.name]: gradient.asnumpy() for parameter, gradient in zip(parameters, gradients)
    }


def detections(detector, images, valid):
    reset(detector)
    detector.set_train(False)
    return [array.asnumpy() for array in detector(ms.Tensor(images), ms.Tensor(valid))]


def test_losses_and_gradients_are_torchvisions(compiled):
    losses, gradients = losses_of(compiled)
    for name, value in zip(LOSSES, losses):
        assert value == pytest.approx(float(GOLDEN[name]), rel=1e-4)
    recorded = {name[len("grad_") :] for name in GOLDEN.files if name.startswith("grad_")}
    assert recorded == set(gradients)
    for name in recorded:
        theirs = GOLDEN[f"grad_{name}"]
        assert np.abs(cases.excerpt(gradients[name]) - theirs).max() < 1e-4 * max(theirs[-1], 1e-2), name


def check_detections(found):
    boxes, scores, labels, masks = found
    for i in range(cases.BATCH):
        count = len(GOLDEN[f"network_scores{i}"])
        assert count == 20 and (scores[i] > 0.05).all()
        assert np.abs(scores[i] - GOLDEN[f"network_scores{i}"]).max() < 1e-4
        assert np.array_equal(labels[i], GOLDEN[f"network_labels{i}"])
        assert np.abs(boxes[i] - GOLDEN[f"network_boxes{i}"]).max() < 0.01
        assert np.abs(masks[i][:, ::3, ::3] - GOLDEN[f"network_masks{i}"]).max() < 1e-4


def test_detections_are_torchvisions(compiled):
    images, valid, *_ = cases.batch()
    check_detections(detections(compiled[0], images, valid))


def test_proposals_and_post_processing_are_torchvisions(monkeypatch):
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        images, valid, *_ = map(ms.Tensor, cases.batch())
        detector = network().set_train(False)
        features, logits, deltas = detector._proposing(images)
        boxes, found = (array.asnumpy() for array in detector.rpn.propose(logits, deltas, valid))
        logits, deltas, proposals = map(ms.Tensor, cases.detecting())
        heads = detector.roi_heads
        predicted = logits, deltas.reshape(cases.BATCH, -1, 4)
        monkeypatch.setattr(heads, "predict_boxes", lambda *_: predicted)
        exists = ms.Tensor(np.ones(proposals.shape[:2], np.bool_))
        detected = [array.asnumpy() for array in heads.detect(features[:-1], proposals, exists, valid)]
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)
    for i in range(cases.BATCH):
        theirs = GOLDEN[f"proposals{i}"]
        assert len(theirs) == found[i].sum()
        assert np.abs(boxes[i][: len(theirs)] - theirs).max() < 0.01
        assert np.abs(detected[0][i] - GOLDEN[f"detect_boxes{i}"]).max() < 0.01
        assert np.abs(detected[1][i] - GOLDEN[f"detect_scores{i}"]).max() < 1e-4
        assert np.array_equal(detected[2][i], GOLDEN[f"detect_labels{i}"])


def test_pynative_mode_gives_the_same(compiled):
    losses, gradients = losses_of(compiled)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        detector = network()
        again, same = losses_of((detector, Losses(detector)))
        images, valid, *_ = cases.batch()
        check_detections(detections(detector, images, valid))
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)
    assert again == pytest.approx(losses, rel=1e-5)
    for name, gradient in gradients.items():
        assert np.abs(same[name] - gradient).max() < 1e-4 * max(np.abs(gradient).max(), 1e-2), name


def test_losses_repeat_to_the_bit(compiled):
    losses, gradients = losses_of(compiled)
    again, same = losses_of(compiled)
    assert losses == again
    assert all(np.array_equal(gradients[name], same[name]) for name in gradients)


def test_padding_changes_nothing(compiled):
    """What stands in the rows of padding is not looked at, but for sampling: its keys choose nothing."""
    _, _, boxes, labels, masks = cases.batch()
    boxes, masks = boxes.copy(), masks.copy()
    boxes[1, 4:], masks[1, 4:] = [3, 4, 50, 60], 1
    assert losses_of(compiled, boxes=boxes, masks=masks)[0] == losses_of(compiled)[0]


def test_images_without_objects(compiled):
    """All is background: no loss of boxes or masks, finite ones of classes."""
    empty = np.zeros((cases.BATCH, cases.OBJECTS), np.int32)
    losses, gradients = losses_of(compiled, labels=empty, boxes=np.zeros((*empty.shape, 4), np.float32))
    assert losses[1] == losses[3] == losses[4] == 0
    assert losses[0] > 0 and losses[2] > 0
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    assert not gradients["roi_heads.mask_predictor.conv5_mask.weight"].any()


def test_one_object_and_a_crowd(compiled):
    _, _, boxes, labels, _ = cases.batch()
    one = np.zeros_like(labels)
    one[0, 0] = 2
    losses, gradients = losses_of(compiled, labels=one)
    assert all(np.isfinite(losses)) and min(losses) > 0
    wide = boxes.copy()
    wide[:, 1] = [0, 0, 64, 64]
    crowd = one.copy()
    crowd[:, 1] = -1
    in_crowd, _ = losses_of(compiled, labels=crowd, boxes=wide)
    assert np.isfinite(in_crowd).all()
    # Everything inside the images lies in the crowd: of the second image no RoI is left, of the first the object's.
    assert in_crowd[0] != pytest.approx(losses[0]) and in_crowd[2] != pytest.approx(losses[2])


def test_objects_outside_the_image(compiled):
    _, _, boxes, _, _ = cases.batch()
    outside = boxes.copy()
    outside[0, 0], outside[0, 1] = [-30, -20, 10, 12], [90, 90, 120, 130]
    losses, gradients = losses_of(compiled, boxes=outside)
    assert np.isfinite(losses).all() and all(np.isfinite(gradient).all() for gradient in gradients.values())


PREDICTORS = ("rpn.head.cls_logits", "rpn.head.bbox_pred", "roi_heads.box_predictor.cls_score")


@pytest.mark.parametrize("name", [*PREDICTORS, "roi_heads.mask_predictor.mask_fcn_logits"])
def test_what_is_no_number_shows_in_the_loss(compiled, monkeypatch, name):
    spoil(monkeypatch, f"{name}.bias")
    assert np.isnan(sum(losses_of(compiled)[0]))


@pytest.mark.parametrize("name", PREDICTORS)
def test_without_numbers_there_are_no_detections(compiled, monkeypatch, name):
    spoil(monkeypatch, f"{name}.bias")
    images, valid, *_ = cases.batch()
    boxes, scores, labels, _ = detections(compiled[0], images, valid)
    assert not scores.any() and not boxes.any() and not labels.any()


def spoil(monkeypatch, name):
    """Let the weights of this name be NaN."""
    weight = cases.weight
    monkeypatch.setattr(
        cases,
        "weight",
        lambda other, shape: np.full(shape, np.nan, np.float32) if other == name else weight(other, shape),
    )


def test_an_image_without_numbers_spoils_no_other(compiled):
    """MindSpore's relu makes NaN a zero, so that the image itself may have detections."""
    images, valid, *_ = cases.batch()
    images = images.copy()
    images[0] = np.nan
    boxes, scores, *_ = detections(compiled[0], images, valid)
    assert np.isfinite(boxes).all() and np.isfinite(scores).all()
    assert np.abs(scores[1] - GOLDEN["network_scores1"]).max() < 1e-4
    assert (boxes[1][:, [0, 2]] <= 60).all() and (boxes[1][:, [1, 3]] <= 50).all()


def test_the_loss_is_the_plain_sum(compiled):
    detector, _ = compiled
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        reset(detector)
        total = DetectionLoss(detector).set_train()(*batch(detector))
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)
    assert total.shape == ()
    assert float(total.asnumpy()) == pytest.approx(sum(float(GOLDEN[name]) for name in LOSSES), rel=1e-4)

"""The forward pass of training: what the model computes, with exact rewrites of slow parts.

Rewrites change the order of operations, never the function: the weights are the model's own and
stay where they are. A layer or a pair of layers that is not exactly the known one is called as it
is by Keras, so any model goes through. Scoring and prediction call the model itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from nightfold import winograd

Layer = Any
WIDE = 2**16
"""Weights from which a dense layer is rewritten; a smaller one costs nothing either way."""

Rewrites = dict[int, Callable[[Any], Any]]
"""What to call instead of a layer, by the layer's `id`."""

Plain = dict[Layer, Any]
"""Layers and the node of the model in which each is called."""


def training_pass(model: Any, training: bool | None = True) -> Callable[[Any], Any]:
    """The function that `model` is in training, rewritten where that is faster.

    Parameters
    ----------
    model : keras.Model
        Functional; any other is called as it is.
    training : bool, optional
        None calls the model as a train step does that knows no such argument.

    Returns
    -------
    callable
        Images in, shape (n, height, width, channels), probabilities out; moving averages and
        random states move as in ``model(images, training=training)``.
    """
    from keras.src.models.functional import Functional

    if not isinstance(model, Functional) or type(model).call is not Functional.call:
        return lambda images: model(images, training=training)
    plain, consumers = _plain_layers(model), _only_consumers(model)
    rewrites = (
        _fewer_products(plain)
        | _bias_behind_pooling(plain, consumers)
        | _fused_batch_norm(plain)
        | _wide_dense(plain)
    )
    read = _pixels_read(plain, consumers)
    run_through_graph = model._run_through_graph

    def rewritten(inputs: Any, operation_fn: Callable[[Layer], Any]) -> Any:
        def operation(layer: Layer) -> Callable[..., Any]:
            call = rewrites.get(id(layer)) or operation_fn(layer)
            return partial(_call_on, read[id(layer)], call) if id(layer) in read else call

        return run_through_graph(inputs, operation_fn=operation)

    def run(images: Any) -> Any:
        # Called as a whole, so that losses of layers, masks and dtypes are Keras's business.
        object.__setattr__(model, "_run_through_graph", rewritten)
        try:
            return model(images, training=training)
        finally:
            object.__delattr__(model, "_run_through_graph")

    return run


def _plain_layers(model: Any) -> Plain:
    """Layers that compute from one tensor, once, what their class is known for; and that call.

    Not so if a layer has a method of its own, a penalty on its output, an activation that looks at
    more than one channel vector at a time, adapters, another dtype than its input or less than
    float32, or was called with an argument of its own, such as ``training=False``.
    """
    calls: dict[int, list[Any]] = {}
    for nodes in model._nodes_by_depth.values():
        for node in nodes:
            calls.setdefault(id(node.operation), []).append(node)
    return {
        layer: calls[id(layer)][0]
        for layer in model.layers
        if _is_plain(layer, calls.get(id(layer), []))
    }


def _is_plain(layer: Layer, calls: list[Any]) -> bool:
    if len(calls) != 1:
        return False
    (given, *more), named = calls[0].arguments.args or (None,), calls[0].arguments.kwargs
    return (
        getattr(given, "dtype", None) == layer.compute_dtype
        and layer.compute_dtype in ("float32", "float64")
        and named.keys() <= {"mask"}
        and not any(value is not None for value in (*more, *named.values()))
        and layer.activity_regularizer is None
        and not vars(layer).keys() & {"call", "convolution_op"}
        and _is_pointwise(getattr(layer, "activation", None))
        and getattr(layer, "quantization_mode", None) is None
        and not getattr(layer, "lora_enabled", False)
    )


def _is_pointwise(activation: Any) -> bool:
    """Whether it is one of Keras's functions: of a pixel they see its channels and nothing else."""
    from keras import activations

    return activation is None or activation in vars(activations).values()


def _pixels_read(plain: Plain, consumers: dict[int, Layer]) -> dict[int, tuple[int, int]]:
    """Rows and columns of its input that matter, for the first layer of some chains, by `id`.

    Windows that do not fit leave the last rows and columns out: pooling 9 x 9 pixels by 2 reads
    8 x 8 of them. What the end of a chain of convolutions and poolings leaves out need not be
    computed by the layers before it, so the first of them gets only what reaches the last one's
    output. That output stays, and so do gradients: those of pixels nobody reads are zero.
    """
    sliding = {id(layer): layer for layer, node in plain.items() if _slides(layer, node)}
    behind = {key: consumers[key] for key in sliding if id(consumers.get(key)) in sliding}

    def side(layer: Layer, axis: int) -> int:
        consumer = behind.get(id(layer))
        needed = (
            plain[layer].outputs[0].shape[1 + axis] if consumer is None else side(consumer, axis)
        )
        size, stride, dilation = (values[axis] for values in _windows(layer))
        return int((needed - 1) * stride + (size - 1) * dilation + 1)

    firsts = behind.keys() - {id(consumer) for consumer in behind.values()}
    read = {key: (side(sliding[key], 0), side(sliding[key], 1)) for key in firsts}
    given = {key: plain[sliding[key]].input_tensors[0].shape[1:3] for key in read}
    return {key: sides for key, sides in read.items() if sides != given[key]}


def _slides(layer: Layer, node: Any) -> bool:
    """Whether the layer computes each pixel from one window of its input's, and nothing else."""
    from keras import layers

    return (
        type(layer) in (layers.Conv2D, layers.MaxPooling2D, layers.AveragePooling2D)
        and layer.padding == "valid"
        and layer.data_format == "channels_last"
        and None not in node.input_tensors[0].shape[1:3]
    )


def _windows(layer: Layer) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Size, stride and dilation of a layer's windows, in pixels, along height and width."""
    from keras import layers

    if type(layer) is layers.Conv2D:
        return layer.kernel_size, layer.strides, layer.dilation_rate
    return layer.pool_size, layer.strides, (1, 1)


def _call_on(sides: tuple[int, int], call: Callable[..., Any], x: Any, **kwargs: Any) -> Any:
    """Call a layer on the first rows and columns of its input."""
    height, width = sides
    return call(x[:, :height, :width, :], **kwargs)


def _fewer_products(plain: Plain) -> Rewrites:
    """Convolutions of 3 x 3 windows as products at points (`nightfold.winograd`)."""
    from keras import layers

    def call(layer: Layer, x: Any) -> Any:
        import tensorflow as tf

        if not _winograd_pays(layer, x):
            return layer(x)
        y = _convolve(layer, x)
        if layer.use_bias:
            y = tf.nn.bias_add(y, layer.bias)
        return layer.activation(y) if layer.activation is not None else y

    return {
        id(layer): partial(call, layer)
        for layer in plain
        if type(layer) is layers.Conv2D and layer.data_format == "channels_last"
    }


def _convolve(layer: Layer, x: Any) -> Any:
    """A convolution without its bias."""
    import tensorflow as tf

    if not _winograd_pays(layer, x):
        return layer.convolution_op(x, layer.kernel)
    kernel = tf.convert_to_tensor(layer.kernel)
    y = winograd.convolve(x, kernel, padded=layer.padding == "same")
    return _exact_zeros(y, x, layer)


def _exact_zeros(y: Any, x: Any, layer: Layer) -> Any:
    """Zeros under windows of zeros, as long as a bias is exactly zero or there is none.

    Biases are zero before the first step. ReLU passes no gradient at zero, but does just above it:
    under a window of zeros, of which the margins of digits are full, rounding alone would decide
    what the biases learn in that step, and after it every weight.
    """
    import tensorflow as tf

    at_zero = tf.reduce_any(tf.convert_to_tensor(layer.bias) == 0) if layer.use_bias else None

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def run(y: Any) -> tuple[Any, Callable[[Any], Any]]:
        def exact() -> Any:
            largest = tf.reduce_max(tf.abs(x), axis=-1, keepdims=True)
            seen = tf.nn.max_pool2d(largest, 3, 1, layer.padding.upper())
            return tf.where(seen == 0, tf.zeros_like(y), y)

        kept = exact() if at_zero is None else tf.cond(at_zero, exact, lambda: y)
        return kept, lambda dy: dy

    return run(y)


def _winograd_pays(layer: Layer, x: Any) -> bool:
    """Whether the layer slides 3 x 3 windows over what is best computed tile by tile.

    A GPU has libraries that choose among such ways themselves.
    """
    import tensorflow as tf

    _, height, width, channels = x.shape
    return (
        (layer.kernel_size, layer.strides, layer.dilation_rate, layer.groups)
        == ((3, 3), (1, 1), (1, 1), 1)
        and None not in (height, width)
        and winograd.pays(height, width, channels, layer.filters, padded=layer.padding == "same")
        and not tf.config.list_logical_devices("GPU")
    )


def _bias_behind_pooling(plain: Plain, consumers: dict[int, Layer]) -> Rewrites:
    """Convolution, bias, ReLU, max-pooling: bias and ReLU on the pooled quarter alone.

    Adding a constant and ReLU are monotone, in floating point too, so the largest of a window is
    the same before as after; gradients go to the same pixel unless rounding made two of them equal.
    """
    import tensorflow as tf
    from keras import activations, layers

    rewrites: Rewrites = {}
    for convolution in plain:
        pooling: Layer = consumers.get(id(convolution))
        if (
            type(convolution) is not layers.Conv2D
            or type(pooling) is not layers.MaxPooling2D
            or pooling not in plain
            or convolution.activation is not activations.relu
            or not convolution.use_bias
            or "channels_first" in (convolution.data_format, pooling.data_format)
        ):
            continue

        def pool(x: Any, layer: Layer = pooling, bias: Any = convolution.bias) -> Any:
            return tf.nn.relu(tf.nn.bias_add(layer(x), bias))

        rewrites |= {id(convolution): partial(_convolve, convolution), id(pooling): pool}
    return rewrites


def _fused_batch_norm(plain: Plain) -> Rewrites:
    """Batch normalisation of images as one operation forward and one backward, in float32 only.

    Its sums over a batch are less exact than Keras's: on 32 images of 26 x 26 they are off by 5e-5
    of the largest gradient, Keras's by 7e-6, measured against float64; behind several such layers
    gradients were up to 14 times less exact than Keras's.
    """
    from keras import layers

    return {
        id(layer): partial(_normalize_batch, layer)
        for layer, node in plain.items()
        if type(layer) is layers.BatchNormalization
        and layer.trainable
        and layer.compute_dtype == "float32"
        and len(node.input_tensors[0].shape) == 4
        and layer.axis in (-1, 3)
        and not layer.renorm
        and not layer.synchronized
    }


def _normalize_batch(layer: Layer, x: Any, mask: Any = None) -> Any:
    """What Keras does in training: normalise by the batch, move the averages towards it.

    TensorFlow's operation gives the sample variance (n - 1), Keras's average takes n.
    """
    import tensorflow as tf

    if mask is not None or getattr(x, "_keras_mask", None) is not None:
        return layer(x, mask=mask, training=True)
    n_channels = x.shape[-1]
    y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=layer.gamma if layer.scale else tf.ones(n_channels),
        offset=layer.beta if layer.center else tf.zeros(n_channels),
        mean=tf.constant([], tf.float32),
        variance=tf.constant([], tf.float32),
        epsilon=layer.epsilon,
        is_training=True,
    )
    n = tf.cast(tf.size(x) // n_channels, tf.float32)
    for average, now in (
        (layer.moving_mean, mean),
        (layer.moving_variance, variance * ((n - 1) / n)),
    ):
        average.assign(average * layer.momentum + now * (1 - layer.momentum))
    return y


def _wide_dense(plain: Plain) -> Rewrites:
    """Dense layers whose gradient of the input is not computed against a transposed kernel."""
    from keras import layers

    return {
        id(layer): partial(_multiply, layer)
        for layer, node in plain.items()
        if type(layer) is layers.Dense
        and len(node.input_tensors[0].shape) == 2
        and layer.kernel.shape[0] * layer.kernel.shape[1] >= WIDE
    }


def _multiply(layer: Layer, x: Any) -> Any:
    """A dense layer; its backward pass reads the kernel as it lies in memory.

    ``dy W^T`` makes the library rearrange all of W; ``(W dy^T)^T`` is the same and moves only the
    small sides.
    """
    import tensorflow as tf

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def product(x: Any, kernel: Any) -> tuple[Any, Callable[[Any], tuple[Any, Any]]]:
        def gradients(dy: Any) -> tuple[Any, Any]:
            dx = tf.transpose(tf.matmul(kernel, dy, transpose_b=True))
            return dx, tf.matmul(x, dy, transpose_a=True)

        return tf.matmul(x, kernel), gradients

    y = product(x, tf.convert_to_tensor(layer.kernel))
    if layer.use_bias:
        y = tf.nn.bias_add(y, layer.bias)
    return layer.activation(y) if layer.activation is not None else y


def _only_consumers(model: Any) -> dict[int, Layer]:
    """The one layer that takes a layer's output, by the `id` of those that have just one."""
    takers: dict[int, list[Layer]] = {}
    for nodes in model._nodes_by_depth.values():
        for node in nodes:
            for tensor in node.input_tensors:
                takers.setdefault(id(tensor._keras_history.operation), []).append(node.operation)
    return {key: layers[0] for key, layers in takers.items() if len(layers) == 1}

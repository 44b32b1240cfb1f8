"""Convolutions and linear layers with scaled weight standardization (Brock et al., arXiv 2101.08692, section 4.3)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from normforge.kernels.backends import look_around
from normforge.kernels.rows.formula import RULES, Standardization, check_rule
from normforge.nn.kept import KEPT, READY, Standardizing, weight_of

M = TypeVar("M", bound=nn.Module)


class _Scaled(Standardizing, nn.Module):
    """What scaled layers have in common."""

    bias: Any

    def _set(self, eps: float | None, scale: float, rule: str, gain_init: float) -> None:
        check_rule(rule)
        look_around()
        self.how = Standardization(rule, RULES[rule] if eps is None else eps, scale)
        self.gain_init = gain_init
        self.gain = nn.Parameter(self.weight.new_empty(len(self.weight)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights from N(0, 1/fan-in), biases 0, gains `gain_init`, as the authors' code starts them."""
        if not hasattr(self, "gain"):  # the constructor of torch's layer asks before there is one
            return
        nn.init.normal_(self.weight, 0.0, max(1, self.weight.numel() // max(1, len(self.weight))) ** -0.5)
        nn.init.constant_(self.gain, self.gain_init)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def standardized(self) -> Tensor:
        """Ŵ, of weight's shape and dtype; a copy of what the layer computes with."""
        return weight_of(self).clone()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.__dict__.pop(KEPT, None)  # of tensors that are about to be others
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in (KEPT, READY)}

    def extra_repr(self) -> str:
        """As torch's, with the scale and the rule where they are not the default."""
        rule = "" if self.how.rule == "paper" else f", rule={self.how.rule!r}"
        scale = "" if self.how.scale == 1 else f", scale={self.how.scale:.4g}"
        return f"{super().extra_repr()}{scale}{rule}"

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Gains of timm are (out, 1, 1, 1)."""
        self.__dict__.pop(KEPT, None)
        gain = state.get(f"{prefix}gain")
        if gain is not None and gain.shape != self.gain.shape and gain.numel() == self.gain.numel():
            state[f"{prefix}gain"] = gain.reshape(self.gain.shape)
        super()._load_from_state_dict(state, prefix, *rest)


def pad_same(
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    mode: str = "zeros",
    value: float = 0.0,
) -> Tensor:
    """x (N, C, *spatial) with so much around it that a convolution gives ⌈size / stride⌉ positions.

    TensorFlow's rule: half on each side, and what is odd goes to the end.
    """
    pads: list[int] = []
    options = (x.shape[-len(kernel_size) :], kernel_size, stride, dilation)
    for size, kernel, step, gap in zip(*(reversed(o) for o in options), strict=True):
        total = max(0, ((size + step - 1) // step - 1) * step + gap * (kernel - 1) + 1 - size)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, "constant" if mode == "zeros" else mode, value) if any(pads) else x


torch.fx.wrap("pad_same")  # sizes are not known in a symbolic trace


class _Same(_ConvNd):
    """A convolution that also takes padding "same" with a stride, which torch's refuse."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        strides = stride if isinstance(stride, Sequence) else (stride,)
        self_padded = padding == "same" and any(s != 1 for s in strides)
        init: Any = super().__init__  # of torch's ConvNd, whose arguments these are
        init(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            0 if self_padded else padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self.same = self_padded

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of x (N, in_channels, *spatial)."""
        return self._apply_to(x, self.weight)

    def extra_repr(self) -> str:
        """As torch's."""
        said: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return said + (", padding=same" if self.same else "")

    def _apply_to(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.same:
            x = pad_same(x, self.kernel_size, self.stride, self.dilation, self.padding_mode)
        convolve: Any = self._conv_forward
        made: Tensor = convolve(x, weight, self.bias)
        return made


class SameConv1d(_Same, nn.Conv1d):
    """torch's Conv1d that takes padding "same" at any stride."""


class SameConv2d(_Same, nn.Conv2d):
    """torch's Conv2d that takes padding "same" at any stride."""


class SameConv3d(_Same, nn.Conv3d):
    """torch's Conv3d that takes padding "same" at any stride."""


class _ScaledConv(_Scaled, _Same):
    """What scaled convolutions have in common."""

    def __init__(
        self,
        *args: Any,
        eps: float | None = None,
        scale: float = 1.0,
        rule: str = "paper",
        gain_init: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self._set(eps, scale, rule, gain_init)

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of x (N, in_channels, *spatial) with Ŵ."""
        return self._apply_to(x, weight_of(self))


class ScaledConv2d(_ScaledConv, SameConv2d):
    """torch's Conv2d with scaled weight standardization, for x (N, in_channels, H, W).

    Ŵ = scale · gain · (W − μ) / √max(N·σ², ε), mean μ and biased variance σ² over the N = fan-in elements of each
    output channel (Brock et al., arXiv 2101.08692, equation 1; the clamp as in the authors' code of arXiv 2102.06171).

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups, bias, padding_mode, device, dtype: as of
            torch's.
        padding: as of torch's; "same" at any stride, by TensorFlow's rule: ⌈size / stride⌉ positions, and of an odd
            number of zeros one more at the end.
        eps: ε; None for that of the rule, 1e-4 or 1e-5.
        scale: a constant factor of Ŵ, such as the γ of the activation that came before.
        rule: "paper", or "timm", where the root is √(N·(σ² + ε)).
        gain_init: what the gains start at.

    Attributes:
        weight: (out_channels, in_channels / groups, *kernel_size). gain, bias: (out_channels,).

    Raises:
        OptionError: an unknown rule.
    """


class ScaledConv1d(_ScaledConv, SameConv1d):
    """torch's Conv1d with scaled weight standardization, for x (N, in_channels, L); see `ScaledConv2d`."""


class ScaledConv3d(_ScaledConv, SameConv3d):
    """torch's Conv3d with scaled weight standardization, for x (N, in_channels, D, H, W); see `ScaledConv2d`."""


class ScaledLinear(_Scaled, nn.Linear):
    """torch's Linear with scaled weight standardization: x (*, in_features); see `ScaledConv2d`.

    Attributes:
        weight: (out_features, in_features). gain, bias: (out_features,).

    Raises:
        OptionError: an unknown rule.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        eps: float | None = None,
        scale: float = 1.0,
        rule: str = "paper",
        gain_init: float = 1.0,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self._set(eps, scale, rule, gain_init)

    def forward(self, x: Tensor) -> Tensor:
        """x Ŵᵀ + bias."""
        return F.linear(x, weight_of(self), self.bias)


def fold(model: M, *, inplace: bool = False) -> M:
    """A model whose scaled layers are torch's plain ones with the weight Ŵ, for inference and export.

    Args:
        model: of any kind; may be a scaled layer itself.
        inplace: change the model itself.

    Returns:
        The model; its folded weights are parameters, and no longer follow from a gain.
    """
    model = model if inplace else copy.deepcopy(model)
    if isinstance(model, _Scaled):
        return _folded(model)  # type: ignore[return-value]
    done: dict[nn.Module, nn.Module] = {}  # a layer in two places stays one
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, _Scaled):
            if module not in done:
                done[module] = _folded(module)
            model.set_submodule(name, done[module])
    return model


_PLAIN: dict[type[_ScaledConv], tuple[Any, Any]] = {
    ScaledConv1d: (SameConv1d, nn.Conv1d),
    ScaledConv2d: (SameConv2d, nn.Conv2d),
    ScaledConv3d: (SameConv3d, nn.Conv3d),
}


def _folded(layer: _Scaled) -> nn.Module:
    """torch's layer with the weight Ŵ of a scaled one."""
    bias = layer.bias is not None
    if isinstance(layer, ScaledLinear):
        plain: Any = nn.Linear(layer.in_features, layer.out_features, bias, device="meta")
    else:
        assert isinstance(layer, _ScaledConv)
        padded, usual = next(kinds for scaled, kinds in _PLAIN.items() if isinstance(layer, scaled))
        plain = (padded if layer.same else usual)(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            "same" if layer.same else layer.padding,
            layer.dilation,
            layer.groups,
            bias,
            layer.padding_mode,
            device="meta",
        )
    plain.train(layer.training)
    plain.weight = nn.Parameter(layer.standardized().detach(), layer.weight.requires_grad)
    plain.bias = layer.bias
    return plain  # type: ignore[no-any-return]

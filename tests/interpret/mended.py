"""The interpreter of triton 3.6 with numpy 2.4 and later."""

from __future__ import annotations

from triton.runtime import interpreter


def mend_interpreter() -> None:
    """Let the interpreter of triton 3.6 run loops with numpy 2.4 and later.

    It takes the bound of a loop from an array of one element by `int`, which numpy has refused since; triton 3.7 and
    later squeeze the array first. Done here as they do it, where the class is patched for each launch.
    """
    patch = interpreter._patch_lang_tensor

    def mended(tensor: type, scope: interpreter._LangPatchScope) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    interpreter._patch_lang_tensor = mended

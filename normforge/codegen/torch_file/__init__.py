"""A layer as a file of Python that imports torch alone: what is exported, and what torch.jit.script is given."""

from normforge.codegen.torch_file.file import file_text

__all__ = ["file_text"]

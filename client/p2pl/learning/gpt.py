"""A small causal transformer over tokens, for texts: needs nothing but torch."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from p2pl.errors import ModelError, wrong
from p2pl.protocol.session import Task

MAX_DEPTH = 64  # blocks
MAX_WIDTH = 16_384
_WIDER = 4  # a block's hidden layer, in widths, as in Vaswani et al. 2017
_SPREAD = 0.02  # standard deviation of the first weights, as in GPT-2


def gpt(task: Task, *, depth: int = 2, width: int = 64, heads: int = 4) -> nn.Module:
    """Returns a transformer that tells of each place of a text which token follows.

    Blocks of causal attention and of a hidden layer of 4 `width`, each with LayerNorm in front, as
    GPT-2 has them; learned places; no dropout. 64 bytes in a row and the defaults: 137,345
    parameters.

    Args:
        task: of rows of tokens: `input` is their number, `classes` says how many tokens there are.
        depth: blocks, 1..64.
        width: numbers a token, 1..16,384.
        heads: of each attention; `width` is a multiple of it.

    Raises:
        ModelError: the task has no rows of tokens, or a size is out of range.
    """
    if len(task.input) != 1 or not task.classes:
        got = f"{task.input}, {task.classes} classes"
        allowed = "one number, how many tokens stand in a row, and task.classes"
        raise ModelError(wrong("model gpt: task.input", got=got, allowed=allowed))
    _check("depth", depth, MAX_DEPTH)
    _check("width", width, MAX_WIDTH)
    _check("heads", heads, MAX_WIDTH)
    if width % heads:
        raise ModelError(
            wrong("model.arguments.heads of gpt", got=heads, allowed=f"a divisor of width, {width}")
        )
    return _Gpt(task.classes, task.input[0], depth, (width, heads))


def _check(name: str, got: object, most: int) -> None:
    if not isinstance(got, int) or not 1 <= got <= most:
        raise ModelError(
            wrong(f"model.arguments.{name} of gpt", got=got, allowed=f"a whole number, 1..{most}")
        )


class _Gpt(nn.Module):
    """Tokens [n, T] int64 in, scores of the next one [n, T, V] out."""

    def __init__(self, tokens: int, length: int, depth: int, size: tuple[int, int]) -> None:
        super().__init__()
        width, heads = size
        self.token = nn.Embedding(tokens, width)
        self.place = nn.Parameter(torch.empty(length, width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.tell = nn.Linear(width, tokens)
        for one in (self.token.weight, self.place, self.tell.weight):
            nn.init.normal_(one, std=_SPREAD)
        nn.init.zeros_(self.tell.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.token(tokens) + self.place[: tokens.shape[1]]
        for block in self.blocks:
            h = block(h)
        scores: Tensor = self.tell(self.norm(h))
        return scores


class _Block(nn.Module):
    """Attention to what stands before, and a hidden layer, around which the input is added back."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ask = nn.Linear(width, 3 * width)  # queries, keys and values
        self.join = nn.Linear(width, width)
        self.body = nn.Sequential(
            nn.Linear(width, _WIDER * width), nn.GELU(), nn.Linear(_WIDER * width, width)
        )

    def forward(self, h: Tensor) -> Tensor:
        n, length, width = h.shape
        asked = self.ask(self.first(h)).view(n, length, 3, self.heads, width // self.heads)
        query, key, value = asked.permute(2, 0, 3, 1, 4)  # [n, heads, T, width / heads] each
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        h = h + self.join(seen.transpose(1, 2).reshape(n, length, width))
        made: Tensor = h + self.body(self.second(h))
        return made

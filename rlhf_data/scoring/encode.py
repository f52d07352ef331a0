"""Text to token ids, as the policy sees them when it generates.

Prompt and completion are tokenised apart, at the end of the generation prompt, so all answers of a prompt share its
ids. A completion ends with the token that ends its turn, the tokenizer's end token or the template's own; what a
template writes after it is left out. What cannot be encoded without changing its meaning is refused by code:

    template.refused     the template raised (no system role, roles that do not alternate, …)
    template.prefix      the template renders the prompt differently once an answer follows
    text.special_token   a text holds one of the tokenizer's special tokens, literally
    prompt.empty         no token stands before the completion
"""

import re
from collections.abc import Callable, Container, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from rlhf_data.scoring.condition import MARK
from rlhf_data.scoring.identity import template_text
from rlhf_data.scoring.recipe import prompt_limit

# Raise recipe.ENCODING whenever the same text, tokenizer and lengths give other ids here.

Message = dict[str, str]
# What a template that asks for today's date gets, by strftime's directives: the day that Llama's templates fall back
# to. With the true one a text would be other tokens, and have another log-prob, every day.
_DAY = {
    "%a": "Fri", "%A": "Friday", "%b": "Jul", "%B": "July", "%d": "26", "%-d": "26", "%e": "26", "%j": "208",
    "%m": "07", "%-m": "7", "%y": "24", "%Y": "2024", "%F": "2024-07-26", "%H": "00", "%I": "12", "%M": "00",
    "%S": "00", "%p": "AM", "%T": "00:00:00", "%Z": "", "%z": "", "%%": "%",
}  # fmt: skip

_NEAR = 200  # characters of a prompt that decide how what follows is cut into tokens, and more


class Encoded(NamedTuple):
    """Token ids of n completions; rows of one prompt share its list. A refused row has no ids."""

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    truncated: list[bool]
    refused: list[str | None]


class _Rendered(NamedTuple):
    prompt: str
    tail: str
    refused: str | None
    kept: tuple[str, str] | None = None  # of a conditioned prompt: the text of its class, and all of that turn


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[Message]],
    completions: Sequence[str],
    *,
    template: str = "chat",
    max_length: int,
    max_prompt_length: int | None = None,
) -> Encoded:
    """Token ids of each completion after its prompt.

    Args:
        tokenizer: of the model that will read them.
        prompts: messages, one list a completion.
        completions: texts; an empty one is scored by its end token alone.
        template: "chat" (the tokenizer's own), "plain" (contents joined by a blank line, the tokenizer's BOS before
            them), or the path of a .jinja file.
        max_length: most tokens of prompt and completion together; a longer completion loses its last ones, and so its
            end token.
        max_prompt_length: most tokens of a prompt, 3/4 of `max_length` by default; a longer prompt loses its oldest
            ones, except a BOS and the text of its class (see `condition`).

    Raises:
        ValueError: no such template, or lengths that leave no room.
    """
    limit = prompt_limit(max_length, max_prompt_length)
    rendered = _render_all(tokenizer, prompts, completions, template)
    prompt_ids = _prompt_ids(tokenizer, rendered, template, limit)
    tails = _tail_ids(tokenizer, rendered)
    special: Any = tokenizer.convert_tokens_to_ids(_special_tokens(tokenizer))
    ends = set(special)
    encoded = Encoded([], [], [], [])
    for row, (before, prompt_cut), tail in zip(rendered, prompt_ids, tails, strict=True):
        refused = row.refused or (None if before else "prompt.empty")
        whole = _to_end(tail, ends, _eos(tokenizer))
        kept = whole[: max_length - len(before)]
        encoded.prompt_ids.append([] if refused else before)
        encoded.completion_ids.append([] if refused else kept)
        encoded.truncated.append(not refused and (prompt_cut or len(kept) < len(whole)))
        encoded.refused.append(refused)
    return encoded


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends an answer in the tokenizer's own chat template; its end token where that has none."""
    if not tokenizer.chat_template:
        return _eos(tokenizer)
    said = encode(tokenizer, [[{"role": "user", "content": "Hi"}]], ["Hi"], max_length=1 << 20)
    return _eos(tokenizer) if said.refused[0] else said.completion_ids[0][-1]


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[Message]], *, template: str, max_prompt_length: int
) -> list[list[int]]:
    """Token ids of prompts to generate from: exactly those that `encode` gives them.

    Raises:
        ValueError: a prompt that would be refused.
    """
    encoded = _prompts(tokenizer, prompts, template, max_prompt_length)
    for prompt, (_, code) in zip(prompts, encoded, strict=True):
        if code:
            raise ValueError(f"a prompt cannot be encoded ({code}): {str(prompt)[:200]}")
    return [ids for ids, _ in encoded]


def refused_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[Message]], *, template: str, max_prompt_length: int
) -> list[str | None]:
    """Why each prompt cannot be encoded, by code; None where it can."""
    return [code for _, code in _prompts(tokenizer, prompts, template, max_prompt_length)]


def _prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[Message]], template: str, limit: int
) -> list[tuple[list[int], str | None]]:
    rendered = _render_all(tokenizer, prompts, [""] * len(prompts), template)
    encoded = _prompt_ids(tokenizer, rendered, template, limit)
    return [
        (ids, row.refused or (None if ids else "prompt.empty")) for row, (ids, _) in zip(rendered, encoded, strict=True)
    ]


def _render_all(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[Message]],
    completions: Sequence[str],
    template: str,
) -> list[_Rendered]:
    render = _renderer(tokenizer, template)
    special = _special_pattern(tokenizer)
    known: dict[tuple, str | None] = {}
    rows = []
    for messages, completion in zip(prompts, completions, strict=True):
        key = tuple((message["role"], message["content"], message.get(MARK) or "") for message in messages)
        if any(
            special.search(text)
            for text in (completion, *(text for _, content, mark in key for text in (content, mark)))
        ):
            rows.append(_Rendered("", "", "text.special_token"))
            continue
        if key not in known:
            known[key] = _attempt(render, messages, None)
        before, whole = known[key], _attempt(render, messages, completion)
        if before is None or whole is None:
            rows.append(_Rendered("", "", "template.refused"))
        elif not whole.startswith(before):
            rows.append(_Rendered("", "", "template.prefix"))
        else:
            kept = next(((mark, content) for _, content, mark in key if mark), None)
            rows.append(_Rendered(before, _turn(whole[len(before) :], completion.strip(), special), None, kept))
    return rows


def _turn(tail: str, answer: str, special: re.Pattern[str]) -> str:
    """What a template writes after a prompt, up to the first special token after the answer: there the policy stops."""
    found, starts = None, 0
    for token in special.finditer(tail):
        if answer in tail[starts : token.start()]:  # the last such: a template may write words of its own before
            found = token.end()
        starts = token.end()
    return tail if found is None or (answer and answer in tail[starts:]) else tail[:found]


def _renderer(tokenizer: PreTrainedTokenizerBase, template: str) -> Callable[[Sequence[Message], str | None], str]:
    text = template_text(template)
    if template == "plain":
        return lambda messages, answer: "\n\n".join(message["content"] for message in messages) + (answer or "")
    if template == "chat" and not tokenizer.chat_template:
        raise ValueError(f"{tokenizer.name_or_path} has no chat template: use template plain, or a .jinja file")
    text = _on_one_day(tokenizer.get_chat_template() if template == "chat" else text)

    def render(messages: Sequence[Message], answer: str | None) -> str:
        turns = [*messages] if answer is None else [*messages, {"role": "assistant", "content": answer}]
        rendered = tokenizer.apply_chat_template(
            turns,
            tokenize=False,
            add_generation_prompt=answer is None,
            chat_template=text,
        )
        assert isinstance(rendered, str)
        return rendered

    return render


def _on_one_day(template: str) -> str:
    """A chat template for which every day is the same: `strftime_now` is a macro of its own."""
    if "strftime_now" not in template:
        return template
    day = "".join(f" | replace({directive!r}, {text!r})" for directive, text in _DAY.items())
    macro = f"{{% macro strftime_now(format) %}}{{{{ format{day} }}}}{{% endmacro %}}"
    return macro + "\n" * template.startswith("\n") + template  # a block takes the line end after it away


def _attempt(render: Callable[..., str], messages: Sequence[Message], answer: str | None) -> str | None:
    try:
        return render(messages, answer)
    except Exception:  # a template is its author's program: whatever it raises is how it refuses these messages
        return None


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return sorted({*tokenizer.all_special_tokens, *added}, key=len, reverse=True)


def _special_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, _special_tokens(tokenizer))) or r"(?!)")


def _prompt_ids(
    tokenizer: PreTrainedTokenizerBase, rendered: Sequence[_Rendered], template: str, limit: int
) -> list[tuple[list[int], bool]]:
    """(ids, whether tokens were cut) of each prompt; equal texts are tokenised once and share one list."""
    classes = {row.prompt: row.kept for row in rendered}
    distinct = list(classes)
    bos = tokenizer.bos_token_id
    start = [bos] if template == "plain" and bos is not None and tokenizer("")["input_ids"][:1] == [bos] else []
    cut = {}
    for text, ids in zip(distinct, _tokenise(tokenizer, distinct), strict=True):
        whole = start + ids
        while bos is not None and whole[:2] == [bos, bos]:
            whole = whole[1:]
        keep = whole[:1] if whole[:1] == [bos] else []
        fits = len(whole) <= limit
        if not fits:
            keep = keep + _class_ids(tokenizer, text, classes[text], limit - len(keep))
        cut[text] = (whole if fits else (keep + whole[len(whole) - limit + len(keep) :]), not fits)
    return [cut[row.prompt] for row in rendered]


def _class_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, kept: tuple[str, str] | None, room: int) -> list[int]:
    """What to put before the last tokens of a cut prompt, so that the text of its class is among them."""
    if kept is None:
        return []
    mark, turn = kept
    at = max(prompt.rfind(turn.strip()), 0) if mark in turn else prompt.rfind(mark)
    if len(_tokenise(tokenizer, [prompt[max(at, 0) :]])[0]) <= room:
        return []  # it is near enough to the end to stay
    ids = _tokenise(tokenizer, [mark])[0]
    if len(ids) >= room:
        raise ValueError(
            f"max_prompt_length leaves {room} tokens, and the text of a class is {len(ids)} ({mark!r}): raise it, or "
            "shorten the text"
        )
    return ids


def _tail_ids(tokenizer: PreTrainedTokenizerBase, rendered: Sequence[_Rendered]) -> list[list[int]]:
    """Ids of each row's tail, as they are behind its prompt.

    Tokenizers of SentencePiece's kind put a space before a text, which must not come between a prompt and its answer:
    with those a tail is tokenised behind the end of its prompt, or behind a line end where the two would run together.
    """
    tails = [row.tail for row in rendered]
    alone = _tokenise(tokenizer, tails)
    if _behind(tokenizer, ["\n"], ["Hello"]) == _tokenise(tokenizer, ["Hello"]):
        return alone
    special = _special_pattern(tokenizer)
    ends = {text: _end_of(text, special) for text in {row.prompt for row in rendered}}
    ways = (
        _behind(tokenizer, [ends[row.prompt] for row in rendered], tails),
        _behind(tokenizer, ["\n"] * len(tails), tails),
        alone,
    )
    return [next(ids for ids in found if ids is not None) for found in zip(*ways, strict=True)]


def _behind(tokenizer: PreTrainedTokenizerBase, before: Sequence[str], texts: Sequence[str]) -> list[list[int] | None]:
    """Ids of each text behind another; None where a token has part of both."""
    first = _tokenise(tokenizer, before)
    both = _tokenise(tokenizer, [one + text for one, text in zip(before, texts, strict=True)])
    return [ids[len(own) :] if ids[: len(own)] == own else None for own, ids in zip(first, both, strict=True)]


def _end_of(prompt: str, special: re.Pattern[str]) -> str:
    """The end of a prompt, from its last special token on where that is near."""
    starts = [token.start() for token in special.finditer(prompt, max(0, len(prompt) - _NEAR))]
    return prompt[starts[-1] if starts else -_NEAR :]


def _tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    ids: Any = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return ids["input_ids"]


def _to_end(tail: list[int], ends: Container[int], eos: int) -> list[int]:
    """`tail` up to its first end token; one is added where the template ends the turn with no token at all."""
    if eos in tail:
        return tail[: tail.index(eos) + 1]
    return tail if tail and tail[-1] in ends else [*tail, eos]


def _eos(tokenizer: PreTrainedTokenizerBase) -> int:
    assert isinstance(tokenizer.eos_token_id, int)  # load_tokenizer refuses a tokenizer without one
    return tokenizer.eos_token_id

"""The class that a policy is conditioned on (C-RLFT): its declared text stands in the prompt, in training and after.

A condition is a mapping:

    on      "label", "source" or "category": the column that names a row's class; labels are "true" and "false"
    text    class → what stands in the prompt
    place   "user" (before the last user turn), "system" (before the system turn, which is made if need be), or
            "template" (the template writes it, as `messages[-1].condition`)
    infer   the class that is asked for when the policy answers

The prompt's identity stays: ids, splits and groups are of the prompt without its class. A message that carries its
class says so in its key `condition`, by which `encode` keeps the text where a prompt is cut to its last tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_data.scoring.identity import told

Message = dict[str, str]
ON = ("label", "source", "category")
PLACES = ("user", "system", "template")
MARK = "condition"  # the key of a message that holds its class's text


def class_name(value: Any) -> str | None:
    """The class that a row's value stands for; None where it has none.

    >>> class_name(True), class_name("gpt4"), class_name(None)
    ('true', 'gpt4', None)
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if value is None else str(value)


def conditioned(messages: Sequence[Message], text: str, place: str) -> list[Message]:
    """A prompt with the text of its class in it.

    >>> conditioned([{"role": "user", "content": "2+2?"}], "Expert: ", "user")
    [{'role': 'user', 'content': 'Expert: 2+2?', 'condition': 'Expert: '}]
    """
    turns = [dict(message) for message in messages]
    if place == "system":
        if not turns or turns[0]["role"] != "system":
            return [{"role": "system", "content": text, MARK: text}, *turns]
        turns[0] = turns[0] | {"content": text + turns[0]["content"], MARK: text}
        return turns
    asked = [at for at, turn in enumerate(turns) if turn["role"] == "user"]
    at = asked[-1] if asked else len(turns) - 1
    content = turns[at]["content"]
    turns[at] = turns[at] | {"content": content if place == "template" else text + content, MARK: text}
    return turns


def with_classes(
    prompts: Sequence[Sequence[Message]], values: Sequence[Any], condition: Mapping[str, Any]
) -> list[list[Message]]:
    """Each prompt with the text of its row's class.

    Args:
        prompts: messages, one list a row.
        values: of the column that the condition is on, one a row.
        condition: see the module.

    Raises:
        ValueError: a class without a text, or a row without a class.
    """
    names = [class_name(value) for value in values]
    known = condition["text"]
    if unknown := sorted({str(name) for name in names if name not in known}):
        rows = sum(name not in known for name in names)
        raise ValueError(
            f"condition: {rows} rows have a {condition['on']} without a text ({', '.join(unknown[:5])}); "
            f"the declared classes are {', '.join(known)}: declare the others, or filter their rows"
        )
    return [conditioned(prompt, known[name], condition["place"]) for prompt, name in zip(prompts, names, strict=True)]


def for_inference(
    prompts: Sequence[Sequence[Message]], model: dict[str, Any], *, of: str | None = None
) -> list[list[Message]]:
    """Prompts as a model wants them when it answers: with a class's text where it was trained on classes.

    Args:
        prompts: messages, one list a prompt.
        model: its reference; a folder of ours says what it was conditioned on.
        of: the class to ask for; None takes the declared one.

    Raises:
        ValueError: the model knows no such class.
    """
    condition = told(model).get("condition")
    if condition is None:
        if of is not None:
            raise ValueError(f"{model.get('path')} was trained without classes: there is no class {of!r} to ask for")
        return [list(prompt) for prompt in prompts]
    name = of or condition["infer"]
    if name not in condition["text"]:
        raise ValueError(f"{model.get('path')} knows no class {name!r}; its classes: {', '.join(condition['text'])}")
    return [conditioned(prompt, condition["text"][name], condition["place"]) for prompt in prompts]

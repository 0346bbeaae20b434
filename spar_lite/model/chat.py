"""A tokenizer's chat template: chats to token ids, and what the template does with thoughts.

Templates are programs that come with a model: they may refuse a chat, want options, or open a
``<think>`` block that the reply has to close. All of that is found out here, once, at loading.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spar_lite.engines.base import CLOSE, OPEN
from spar_lite.errors import ModelError, one_line
from spar_lite.records import Message

ASK, REPLY = "Name a colour.", "The sky is blue."


class ChatTemplate:
    """The template of one tokenizer with a recipe's options.

    Args:
        tokenizer: one with a chat template.
        options: ``model.chat_template``, handed to the template (``enable_thinking``, a date, …).
        name: the model's, for messages.

    Raises:
        ModelError: there is no template, there are several and none is the default, or it cannot
            render a plain chat.
    """

    def __init__(self, tokenizer: Any, options: Mapping[str, Any], name: str) -> None:
        self.tokenizer = tokenizer
        self.options = dict(options)
        self.name = name
        for option in ("add_generation_prompt", "conversation", "return_dict", "tokenize"):
            if option in self.options:
                raise ModelError(f"model.chat_template: {option} is set by spar_lite itself.")
        named = tokenizer.chat_template
        if not named:
            raise ModelError(
                f"{name} has no chat template, so it is probably not an instruct model. "
                "Choose an instruct model, or put a chat_template.jinja beside its tokenizer."
            )
        if isinstance(named, dict) and "default" not in named:
            raise ModelError(
                f"{name} has the chat templates {', '.join(sorted(named))} and no default. Put the "
                "one to use into a chat_template.jinja beside its tokenizer."
            )
        question, answer = Message("user", ASK), Message("assistant", REPLY)
        prompt = self._render((question,), True, tokenize=False)
        whole = self._render((question, answer), False, tokenize=False)
        silent = self._render((question,), True, tokenize=False, enable_thinking=False)
        opened = prompt.rpartition(ASK)[2]
        self.opens_thought = opened.rfind(OPEN) > opened.rfind(CLOSE)
        # Why replies cannot be trained as they are sampled, or None if they can: what is sampled
        # with a thought must not be trained without one, nor as part of one.
        self.thoughts_when_training: str | None = None
        if self.opens_thought:
            found = f"opens a {OPEN} block, so answers would be trained as thoughts"
        elif whole.startswith(prompt) and OPEN in whole.removeprefix(prompt).partition(REPLY)[0]:
            found = f"puts an empty {OPEN} block before what is trained, and none before sampling"
        elif "enable_thinking" not in self.options and silent != prompt:
            found = "asks for a thought, which answers would be trained without"
        else:
            return
        self.thoughts_when_training = (
            f"the chat template of {name} {found}. If it knows that option: "
            "-o model.chat_template.enable_thinking=false; else choose a model that does not think."
        )

    def encode(self, messages: Sequence[Message], reply: bool = True) -> list[int]:
        """A chat as token ids; ``reply`` opens the assistant's turn.

        Raises:
            ModelError: the template refuses the chat (a system turn, turns out of order).
        """
        return list(self._render(messages, reply, tokenize=True))

    def _render(self, messages: Sequence[Message], reply: bool, tokenize: bool, **more: Any) -> Any:
        chat = [{"role": m.role, "content": m.content} for m in messages]
        try:
            return self.tokenizer.apply_chat_template(
                chat,
                add_generation_prompt=reply,
                return_dict=False,
                tokenize=tokenize,
                **{**self.options, **more},
            )
        except Exception as error:  # noqa: BLE001 - a template is a program, and anyone's
            turns = ", ".join(m.role for m in messages)
            reason = one_line(error)
            raise ModelError(
                f"the chat template of {self.name} does not take a chat of {turns}: {reason}. "
                "Change the data or model.chat_template, or choose another model."
            ) from None

"""One way to write a character: what every scorer's reading and comparing of answers begins with.

Full-width forms, the many dashes, quotation marks and spaces become those of ASCII; superscripts stay, for x² is not x2.
"""

from __future__ import annotations

import json
import re
import unicodedata

_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d"
_SPACES = "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000\t"
_NOTHING = "\u200b\u200c\u200d\u2060\ufeff\u00ad"
_TABLE: dict[int, str | None] = {
    **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},
    **{ord(character): "-" for character in _DASHES},
    **{ord(character): " " for character in _SPACES},
    **dict.fromkeys(map(ord, _NOTHING)),
    **{ord(character): '"' for character in "\u201c\u201d\u201e\u00ab\u00bb\u300c\u300d"},
    **{ord(character): "'" for character in "\u2018\u2019\u201a\u0060\u00b4"},
    ord("\u3002"): ".",
    ord("\u3001"): ",",
    ord("\r"): "\n",
}
_TABLE[ord("`")] = "`"
_WRAPPED = re.compile(
    r"\\(?:text|textbf|textit|textrm|texttt|mathrm|mathbf|mathit|mathsf|mbox|operatorname|emph)\s?\{([^{}]*)\}"
)
_PAIRS = (
    ("**", "**"),
    ("__", "__"),
    ("`", "`"),
    ("$$", "$$"),
    ("$", "$"),
    ("\\(", "\\)"),
    ("\\[", "\\]"),
    ('"', '"'),
    ("'", "'"),
)
_SINGLE = (("*", "*"), ("_", "_"))
_BOLD = re.compile(r"\*\*([^*\n]{1,200})\*\*|__([^_\n]{1,200})__|\\textbf\{([^{}\n]{1,200})\}")
_AROUND_SIGNS = re.compile(r"\s*([-+*/=^,;:()\[\]{}<>|])\s*")
_INITIAL = re.compile(r"(?<![^\W_])([^\W\d_]\.) (?=\w)")
_SMILEYS = re.compile("[\U0001f300-\U0001faff\u2600-\u27bf\ufe0f]")
_ACRONYM = re.compile(r"(?<![\w.])[^\W\d_](?:\.[^\W\d_]){1,6}(?![\w.])")
_ARTICLE = re.compile(r"(?:the|an?)\s+(?=\S)")
_EXPLAINED = re.compile(
    r",? (?:because|since|as it|due to|where|which(?! (?:gives|yields|equals|makes|means|simplifies|reduces)))\b"
    r"|[,;(] ?\(?(?:because|since|due to|as|so that|note|rather than|instead of)\b"
    r"|,? or (?:about|approximately|roughly)\b|\((?=[^()]{0,80}=)|, (?:and )?not |, (?:an?|who) ",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?<=[^\W\d_]{4})[.!?](?= +[A-Z\"'(])|(?<=\d)\.(?= +[A-Z])")


_LONGEST_QUESTION = 4_000
_ROMAN = (
    "i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x",
    "xi", "xii", "xiii", "xiv", "xv", "xvi", "xvii", "xviii", "xix", "xx",
)  # fmt: skip
_NAMED = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NUMERALS = {name: number for names in (_ROMAN, _NAMED) for number, name in enumerate(names, 1)}


def plain(text: str) -> str:
    """Return a text with its full-width forms, dashes, quotation marks and spaces written in ASCII."""
    return text if text.isascii() and "\t" not in text and "\r" not in text else text.translate(_TABLE)


def unwrapped(text: str) -> str:
    r"""Return a text without `\text{…}` and its like around words, however they nest up to three deep."""
    for _ in range(3):
        if "\\" not in text:
            break
        text = _WRAPPED.sub(r" \1 ", text)
    return text


def tidy(answer: str) -> str:
    """Return an answer without the markup around it and without one full stop at its end."""
    answer = answer.strip()
    for _ in range(4):  # markup nests: **$12$**.
        before = answer
        if answer.endswith(".") and not answer.endswith(".."):
            answer = answer[:-1].rstrip()
        for opening, closing in (*_PAIRS, *_SINGLE):
            if len(answer) > len(opening + closing) and answer.startswith(opening) and answer.endswith(closing):
                inner = answer[len(opening) : -len(closing)]
                answer = answer if closing in inner else inner.strip()
        if answer.startswith("\\text") and (whole := _WRAPPED.fullmatch(answer)):
            answer = whole[1].strip()
        if answer == before:
            break
    return answer


def first_sentence(line: str) -> str:
    """Return a line up to its first full stop that is neither an abbreviation's nor a number's."""
    return _SENTENCE.split(line, maxsplit=1)[0]


def unexplained(line: str) -> str:
    """Return a line up to an explanation or contrast: `5, since 5+2 = 7`, `Lyon, not Paris`; else the line."""
    said = _EXPLAINED.split(line, maxsplit=1)[0]
    return said if said.strip(" (*") else line


def bold_spans(line: str) -> list[str]:
    """Return what is set in bold in a line, in its order."""
    return [next(part for part in found.groups() if part is not None) for found in _BOLD.finditer(line)]


def words_of(text: str) -> str:
    """Return a text in the form in which equal words are equal: width, case, spaces, articles and end marks levelled."""
    text = plain(unicodedata.normalize("NFKC", unwrapped(tidy(plain(text)))))
    text = " ".join(_SMILEYS.sub("", text).casefold().split()).strip(" .,;:!?\"'").removeprefix("- ")
    text = _ACRONYM.sub(lambda found: found[0].replace(".", ""), text)
    text = _AROUND_SIGNS.sub(r"\1", _INITIAL.sub(r"\1", text))
    return _ARTICLE.sub("", text, count=1) if _ARTICLE.match(text) else text


def same_name(one: str, other: str) -> bool:
    """Tell whether two phrases have the same words, or are one name, in one of them without its accents."""
    left, right = words_of(one), words_of(other)
    if left != right and (numbered := _of_number(left)) is not None and numbered == _of_number(right):
        return True  # World War II, World War Two
    if left == right or left.isascii() == right.isascii():
        return left == right
    accented, bare = (one, right) if right.isascii() else (other, left)
    is_name = all(word[:1].isupper() for word in tidy(accented).split() if not word.isascii())
    apart = unicodedata.normalize("NFD", words_of(accented))
    tells_apart = " " not in left and any(sign in apart for sign in "\u0308\u030a")  # Mutter and Mütter are two words
    return is_name and not tells_apart and "".join(each for each in apart if not unicodedata.combining(each)) == bare


def _of_number(words: str) -> tuple[str, int] | None:
    """Return a name that ends on a number, and the number: in digits, Roman ones or a word."""
    name, _, last = words.rpartition(" ")
    if not name or not last.isascii():
        return None
    number = _NUMERALS.get(last, int(last) if last.isdecimal() and len(last) < 3 else None)
    return None if number is None else (name, number)


def asked_last(prompt: str, *, is_conversation: bool) -> str:
    """Return the question itself: of a conversation, the text of its last message.

    Args:
        prompt: A text, or the JSON messages of a conversation.
        is_conversation: Whether it is one.
    """
    if not is_conversation:
        return prompt
    try:
        return str(json.loads(prompt)[-1]["content"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return prompt


def question_of(prompt: str, *, is_conversation: bool) -> str:
    """Return the last sentence of a prompt that asks, else its last line.

    Args:
        prompt: A text, or the JSON messages of a conversation.
        is_conversation: Whether it is one.
    """
    text = asked_last(prompt, is_conversation=is_conversation)[-_LONGEST_QUESTION:].strip()
    asked = re.findall(r"[^.!?\n]{1,400}\?", text)
    return str(asked[-1] if asked else text.rpartition("\n")[2]).strip()


def shortened(text: str, most: int) -> str:
    """Return a text in one line of at most `most` characters."""
    line = " ".join(text[: 4 * most].split())
    return line if len(line) <= most else line[: most - 1] + "…"

"""Answers that are one of several options: a label alone, in brackets, before the option's text; or that text alone."""

from __future__ import annotations

import re
from collections.abc import Mapping

from clear_ray.tasks.denials import after_denial, denies, is_denied
from clear_ray.tasks.lone_labels import closing_labels, listed_labels, lone_label, ticked_label
from clear_ray.tasks.refusals import is_undetermined
from clear_ray.tasks.sentences import CONTRAST, asserted
from clear_ray.tasks.writing import asked_last, bold_spans, plain, unwrapped, words_of

_LONGEST = 2_000
_LABEL = re.compile(
    r"(?:(?<=\s)|^)[(\[]?([A-Z]|[1-9])[)\].](?=\s)|^([A-Z]|[1-9]):(?=\s)|(?:(?<=\s)\(|^\(?)([a-h])\)(?=\s)",
    re.MULTILINE,
)
_MOST_OPTIONS = 26
_CLEAN = re.compile(r"[*_`\"$\\]|\bquad\b|(?<!\w)'(?=[A-Za-z][).]?'(?!\w))|(?<=[A-Za-z).])(?<!\w\w)'(?!\w)")
_ORNAMENT = re.compile("\\A(?:[>•‣▪-]\\s+|[\U0001f300-\U0001faff\u2190-\u21ff\u2600-\u27bf\ufe0f]\\s*)+")
_LABELLED = r"[(\[]?(?P<label>[A-Z])[)\]]?"
_LEAD = re.compile(
    r"[\s:({\[]*(?:both (?=[A-Z] and [A-Z]\b)"
    r"|(?:the )?(?:(?:correct|right|best|final) )?(?:option|choice|letter|answer)s?(?: is)?[\s:]+"
    r"(?=[(\[]?[A-Za-z1-9](?:\W|$)))",
    re.IGNORECASE,
)
_ONE = r"[(\[]{0,2}[A-Z][)\]]{0,2}"
_SEVERAL = re.compile(
    rf"{_ONE}(?:(?: ?[,;&/+] ?(?:and |or )?| and | or |(?<=\)) ?(?=\()){_ONE}){{1,9}}"
    r"(?= ?(?:$|[.;:!)\n]|,(?! ?[A-Z]\b)))"
)
_TOGETHER = re.compile(r"[A-Z]{2,10}(?=\W{0,3}$)")
_BRACKETED = re.compile(r"(?P<open>[(\[{]{1,2}) ?(?P<label>[A-Za-z]|[1-9]) ?[)\]}]{1,2}")
_DELIMITED = re.compile(
    r"(?P<label>[A-Z]|[1-9]) ?(?:$|[).:\]}!;](?!\w)|\?(?=\W*$)|,(?!\w)| - |\n| ?\(| because\b| since\b| as\b"
    r"| is (?:the )?(?:correct|right|best)\b)"
    r"|(?P<small>[a-z])[).\]]{0,2}$|(?P<only>[a-z])[).](?= )"
)
_AFTER_TEXT = re.compile(r"[^()\n]{1,200}\(([A-Z])\)\W{0,3}")
_SPACED = re.compile(r"(?P<label>[A-Z]|[1-9]) +(?P<text>\S.*)")
_NOT = re.compile(r"\W{0,4}(?:not|neither|none|never|any(?:thing)? (?:option )?but)\b", re.IGNORECASE)
_SAID = (
    re.compile(
        r"\b(?:choose|pick|select|(?:go|going) (?:with|for)|opt for|choosing|picking|lean(?:ing)? (?:towards?|to)) "
        rf"(?:option |choice |answer |letter )?{_LABELLED}(?![\w'])"
    ),
    re.compile(
        r"\b(?:correct|right|best|proper) (?:answer|option|choice|letter|one)(?: \w{1,15}){0,3}? ?(?:is|:|=) ?:? ?"
        rf"(?:option |choice )?{_LABELLED}(?![\w'])(?! (?:and|or) [A-Z]\b)"
    ),
    re.compile(
        r"(?<!and )(?<!or )(?<!nor )(?<!neither )(?:\b[Oo]ption |\b[Cc]hoice |\b[Aa]nswer )?(?<![\w'(])"
        rf"{_LABELLED} (?:is|would be|seems|must be) (?:clearly |therefore |thus )?"
        r"(?:the )?(?:only )?(?:correct|right|best|most|answer|[a-z]{2,12}est)\b"
    ),
    re.compile(
        r"\b(?:[Ii]t(?:'?s| is| must be| has to be| should be| would be)|"
        r"[Tt]hat(?:'?s| is)|[Tt]his is|"
        r"[Ii]t(?:'?s| is) (?:actually|really|definitely|clearly|probably)|"
        r"[Dd]efinitely|[Cc]learly|[Pp]robably|[Ss]urely|[Oo]bviously) "
        rf"(?:option |letter |choice )?{_LABELLED}(?=\W{{0,2}}(?:$|\n|[.,;!]))"
    ),
    re.compile(rf"(?:\b[Cc]orrect ?:|(?<=\w),) {_LABELLED}(?=\W{{0,2}}$)", re.MULTILINE),
    re.compile(rf"\b(?:leaves|leaving) (?:us with |only |just )?(?:option )?{_LABELLED}(?![\w'])"),
    re.compile(
        r"\b(?:[Cc]hoice|[Oo]ption|[Pp]ick|[Ss]election|[Ll]abel|[Cc]lass|[Cc]ategory|[Pp]rediction|[Vv]erdict)s? ?"
        rf"(?::|->|=>|is) ?{_LABELLED}(?![\w'])"
    ),
    re.compile(
        rf"\b(?:[Ss]o|[Tt]hus|[Tt]herefore|[Hh]ence),? (?:it is |it's )?{_LABELLED}(?=\W{{0,2}}$)", re.MULTILINE
    ),
    re.compile(rf"\b(?:is|be):? {_LABELLED}(?=\W{{0,2}}$)", re.MULTILINE),
    re.compile(rf"(?<![\w'(]){_LABELLED} (?:does|fits|matches|works)(?=\W*$)", re.MULTILINE),
    re.compile(rf"\b[Oo]nly (?:option |choice )?{_LABELLED} (?=[a-z])"),
    re.compile(rf"(?<![\w'(]){_LABELLED} (?:remains|is left)\b"),
    re.compile(r"\b[Aa]nswer [(\[]?(?P<label>[A-Za-z])[)\]]?[.!]?$", re.MULTILINE),
)

_RELATED = re.compile(
    r"\b(?:before|after|from|near|over|behind|beside|with|"
    r"like|beats|of|to|by|against|vs|versus)(?: the)?\Z"
)
_TELLING, _FEW = 3, 3
_NONE = re.compile(
    r"none of (?:the above|these|them|those|the (?:options|choices|others|other options))(?: (?:options|are|is)\b.*)?"
)
_BESIDE = re.compile(r"\b(?:while|whereas|unlike|than|rather than|instead of|compared (?:to|with))\b")
_NUMBERED = re.compile(r"\W{0,3}(?:the )?(?:option|choice|number) ?#?([1-9])\W{0,3}", re.IGNORECASE)
_FEW_CHARACTERS = 40
_PLACES = ("first", "second", "third", "fourth", "fifth")
_PLACED = re.compile(
    rf"\b(?:is|be|choose|pick|select)\b:? the (?P<place>{'|'.join(_PLACES)}|last) (?:one|option|choice|answer)\W{{0,3}}\Z",
    re.IGNORECASE,
)
Options = Mapping[str, str]


def options_of(prompt: str, *, is_conversation: bool = False) -> dict[str, str]:
    """Return the labelled options of a prompt, label to text; empty if none can be told.

    Of several lists, as worked examples have them, the last one counts. Labels rise without gaps from A or from 1.

    Args:
        prompt: The question; or, of a conversation, JSON messages, of which the last one is read.
        is_conversation: Whether it is one.
    """
    text = plain(asked_last(prompt, is_conversation=is_conversation))[-20 * _LONGEST :]
    best: list[tuple[str, int, int]] = []
    run: list[tuple[str, int, int]] = []
    for found in _LABEL.finditer(text):
        label = found[1] or found[2] or found[3].upper()
        if label in "A1" and len(label) == 1:
            best, run = (run if len(run) > 1 else best), [(label, found.start(), found.end())]
        elif run and ord(label) == ord(run[-1][0]) + 1 and len(run) < _MOST_OPTIONS:
            run.append((label, found.start(), found.end()))
    best = run if len(run) > 1 else best
    if not best:
        return {}
    ends = [start for _, start, _ in best[1:]] + [len(text)]
    return {
        label: text[end:until].strip().partition("\n")[0].strip()
        for (label, _, end), until in zip(best, ends, strict=True)
    }


def read_choice(answer: str, options: Options) -> str | None:
    """Return the label that an answer names: `B`, or `A,C` for several together; None if it names none, or is undecided.

    Args:
        answer: What follows a mark, or a short line.
        options: Options of the question, as far as they are known.
    """
    text = after_denial(_clean(answer))
    if not text or _NOT.match(text):
        return _by_text(text, options)
    several = _SEVERAL.match(text)
    if several and re.match(r"\)* [a-z]", text[several.end() :]):
        return None  # (B) and (D) are about something
    if several:
        if re.search(r" or |/", several[0]):
            return None
        return _joined(re.findall(r"[A-Z]", several[0].replace("and", " ")))
    line = text.partition("\n")[0]
    if (opened := re.fullmatch(r"[(\[]([A-Za-z])\W?", line)) and opened[1].upper() in options:
        return opened[1].upper()
    if "A" in options and (numbered := _NUMBERED.fullmatch(plain(answer.strip()[:_FEW_CHARACTERS]))):
        place = int(numbered[1]) - 1
        return None if any(map(str.isdecimal, options.values())) else next(iter(list(options)[place : place + 1]), None)
    together = _TOGETHER.match(line)
    if together and list(together[0]) == sorted(set(together[0])):
        return _joined(list(together[0]))
    if text.startswith("A: ") and (asked := _by_reply(line[3:], options)) is not None:
        return asked
    bracketed = _BRACKETED.match(text)
    found = bracketed or _DELIMITED.match(text)
    if found and is_denied("", text[found.end() :]):  # A) is wrong
        return None
    if found:
        groups = found.groupdict()
        label = next(groups[name] for name in ("label", "small", "only") if groups.get(name)).upper()
        if label in options or (not options and label.isalpha()):
            return label
        return None if label.isalpha() else _by_text(line, options)
    by_text = _by_text(line, options)
    if by_text is not None:
        return by_text
    after = _AFTER_TEXT.fullmatch(line)
    if after and (not options or after[1] in options):
        return after[1]
    spaced = _SPACED.match(line)
    if (
        spaced
        and spaced["label"] in options
        and words_of(spaced["text"]).startswith(words_of(options[spaced["label"]]))
    ):
        return spaced["label"]
    return lone_label(line, options) or _by_truth(line, options) or _by_undetermined(line, options)


def find_choice(text: str, options: Options) -> str | None:
    """Return the label that an unmarked text ends on, or begins with; None if it names none."""
    lines = [line for line in text[-20 * _LONGEST :].split("\n") if line.strip(" `")]
    if not lines:
        return None
    last, before = lines[-1], lines[-2] if len(lines) > 1 else ""
    is_list = _is_option(last) and _is_option(before)
    if is_list and (found := ticked_label(lines) or listed_labels(lines, options)) is not None:
        return found
    if not is_list and (found := read_choice(last, options)) is not None:
        return found
    if not is_list and (found := closing_labels(_clean(last), options)) is not None:
        return found
    if (found := _said(_clean(text[-2 * _LONGEST :]), options)) is not None:
        return found
    for span in reversed(bold_spans(last)):
        if (found := read_choice(span, options)) is not None:
            return found
    closing = re.sub(r"\s*\([^()]{1,80}\)(?=\W{0,3}\Z)", "", last)
    if (found := _by_last_words(closing, options) or _by_last_letter(last, options)) is not None:
        return found
    if (
        not is_list
        and (found := _by_subject(last, options) or _by_subject(last.partition(": ")[0], options)) is not None
    ):
        return found
    if (found := _by_truth(last, options) or _by_place(last, options)) is not None:
        return found
    if len(lines) > 1 and not _is_option(lines[1]) and not is_list:
        return read_choice(lines[0], options)
    return None


def undetermined_option(options: Options) -> str | None:
    """Return the option that says that something cannot be known, if there is exactly one."""
    found = [label for label, option in options.items() if is_undetermined(option)]
    return found[0] if len(found) == 1 else None


def label_of(gold: str, options: Options) -> str | None:
    """Return the label that a reference answer names, by itself, by the option's text, or by its place from 0 among letters.

    A number that is one option's text and another one's place names neither.
    """
    by_words = read_choice(gold, options)
    if "A" not in options or not gold.strip().isdecimal():
        return by_words
    place = list(options)[int(gold) : int(gold) + 1] if len(gold.strip()) < 3 else []
    named = {label for label in (by_words, *place) if label is not None}
    return named.pop() if len(named) == 1 else None


def is_choice(gold: str) -> bool:
    """Tell whether a reference answer is a letter as options have them, alone or in brackets."""
    return re.fullmatch(r"\(?[A-Z]\)?[.)]?|\([a-z]\)|[a-z]", _clean(gold)) is not None


def _clean(answer: str) -> str:
    text = _CLEAN.sub("", unwrapped(plain(answer.strip()[:_LONGEST]))).strip()
    text = re.sub(r" {2,}", " ", text)
    text = _ORNAMENT.sub("", text)
    lead = _LEAD.match(text)
    return text[lead.end() :] if lead else text


def _by_reply(reply: str, options: Options) -> str | None:
    """Return the label named by what follows `A: ` as the mark of an answer, not as the label A."""
    label = re.fullmatch(r"[(\[]?([A-Z])[)\]]?\W{0,2}", reply.strip())
    return label[1] if label else _by_text(reply, options)


def _joined(labels: list[str]) -> str:
    return ",".join(sorted(set(labels)))


def _said(text: str, options: Options) -> str | None:
    places = []
    for pattern in _SAID:
        places += [
            (found.start("label"), found["label"].upper())
            for found in pattern.finditer(text)
            if not is_denied(text[: found.start("label")], text[found.end("label") :])
        ]
    if not places:
        return None
    label = max(places)[1]
    return label if not options or label in options else None


def _is_option(line: str) -> bool:
    return re.match(r"\s*(?:[-*•>] )?[*(\[]{0,3}(?:[A-Z]|[1-9])[)\].:](?!,)", line) is not None


def _by_last_words(line: str, options: Options) -> str | None:
    """Return the option whose text a line ends on, the longest if one ends on another, unless it is denied."""
    words = f" {words_of(line)}"
    ending = [
        label for label, option in options.items() if words.endswith((f" {words_of(option)}", f"={words_of(option)}"))
    ]
    if not ending or len({words_of(options[label]) for label in ending}) < len(ending):
        return None
    longest = max(ending, key=lambda label: len(words_of(options[label])))
    before = words[: -len(words_of(options[longest]))].rstrip()
    others = [words_of(option) for label, option in options.items() if label != longest]
    if (_BESIDE.search(before) or _RELATED.search(before)) and any(
        re.search(rf"\b{re.escape(option)}\b", before) for option in others
    ):
        return None
    return None if denies(before.replace(",", ", ")) or re.search(r"\bor( the| an?)?$", before) else longest


def _by_last_letter(line: str, options: Options) -> str | None:
    """Return the option whose letter alone is a line's last sentence."""
    found = re.search(r"[.!?] +[(\[]?([A-Z])[)\]]?\W{0,2}\Z", line)
    return found[1] if found and found[1] in options else None


def _by_subject(line: str, options: Options) -> str | None:
    """Return the option that a line says something of, if it names no other one and contrasts nothing."""
    words = words_of(_BESIDE.split(line, maxsplit=1)[0])
    named = [label for label, option in options.items() if re.search(rf"\b{re.escape(words_of(option))}\b", words)]
    if len(named) != 1:
        return None
    option = words_of(options[named[0]])
    if len(option) >= _TELLING and not CONTRAST.search(line) and not is_undetermined(option):
        return named[0]
    is_subject = re.match(rf"{re.escape(option)} (?:is|are|was|were) (?!not\b|n't)", words) is not None
    return named[0] if is_subject or any(words_of(phrase) == option for phrase in asserted(line)) else None


def _by_truth(line: str, options: Options) -> str | None:
    """Return the option yes or no, true or false that a line begins with."""
    found = re.match(r"(yes|no|true|false)(?:[,.:;!]| -|$)", line.lower())
    return None if found is None else _by_text(found[1], options)


def _by_place(line: str, options: Options) -> str | None:
    """Return the option that a line calls the first, second, third, fourth or last one."""
    found = _PLACED.search(line)
    if found is None or not options or is_denied(line[: found.start()], line[found.end() :]):
        return None
    place = _PLACES.index(found["place"].lower()) if found["place"].lower() in _PLACES else len(options) - 1
    return list(options)[place] if place < len(options) else None


def _by_undetermined(line: str, options: Options) -> str | None:
    """Return the option that nothing can be known, if a line says just that."""
    return undetermined_option(options) if is_undetermined(line) else None


def _by_text(text: str, options: Options) -> str | None:
    if not options:
        return None
    words = words_of(text)
    matching = [label for label, option in options.items() if words_of(option) == words]
    if not matching and _NONE.fullmatch(words):
        matching = [label for label, option in options.items() if _NONE.fullmatch(words_of(option))]
    if not matching and words.isdecimal() and all(map(str.isalpha, options)):  # 100 for 100 °C
        matching = [
            label for label, option in options.items() if re.fullmatch(rf"{words} ?[^\d\s.,]+", words_of(option))
        ]
    if not matching and len(words) >= _TELLING and len(words.split()) <= _FEW and not words.isdecimal():
        matching = [label for label, option in options.items() if words_of(option).endswith(f" {words}")]
    return matching[0] if len(matching) == 1 else None

"""What a number counts: currencies, scales such as `million`, and units, each under one name."""

from __future__ import annotations

CURRENCIES = {
    "$": "dollar", "us$": "dollar", "usd": "dollar", "dollar": "dollar", "dollars": "dollar", "£": "pound", "gbp": "pound",
    "€": "euro", "eur": "euro", "euro": "euro", "euros": "euro", "¥": "yen", "yen": "yen", "₹": "rupee", "rs": "rupee",
    "inr": "rupee", "rupee": "rupee", "rupees": "rupee", "₩": "won", "cent": "cent", "cents": "cent", "¢": "cent",
}  # fmt: skip
SCALES = {
    "k": 10**3, "thousand": 10**3, "million": 10**6, "mn": 10**6, "bn": 10**9, "billion": 10**9, "trillion": 10**12,
    "hundred": 100, "m": 10**6, "b": 10**9, "dozen": 12,
}  # fmt: skip
_UNITS = {
    "lb": "pound", "lbs": "pound", "pounds": "pound", "kilometers": "km", "kilometres": "km", "kilometer": "km",
    "meters": "m", "metres": "m", "meter": "m", "metre": "m", "centimeters": "cm", "centimetres": "cm", "cms": "cm",
    "grams": "g", "gram": "g", "kilograms": "kg", "kilogram": "kg", "kgs": "kg", "hrs": "hour", "hr": "hour",
    "h": "hour", "hours": "hour", "mins": "minute", "min": "minute", "minutes": "minute", "secs": "second",
    "sec": "second", "s": "second", "seconds": "second", "feet": "ft", "foot": "ft", "inches": "in", "inch": "in",
    "degrees": "degree", "deg": "degree", "percent": "%", "per cent": "%", "people": "person", "children": "child",
    "men": "man", "women": "woman", "liters": "l", "litres": "l", "liter": "l",
}  # fmt: skip
_NO_UNIT = frozenset(
    {
        "in", "total", "altogether", "of", "because", "since", "per", "which", "so", "and", "for", "to", "the", "a",
        "an", "is", "are", "was", "were", "left", "more", "or", "but", "as", "at", "if", "that", "when", "where",
        "with", "by", "on", "from", "than", "then", "each", "it", "he", "she", "they", "we", "you", "i", "this",
        "remaining", "overall", "st", "nd", "rd", "th", "however", "can", "could", "would", "will", "may", "might", "must",
        "has", "have", "had", "does", "do", "did", "not", "there", "seems",
    }
)  # fmt: skip


def unit_of(words: str, *, is_glued: bool) -> tuple[str | None, int]:
    """Return the unit in what follows a number, and its length; no unit for words that only go on; None for `12x`."""
    first = words.split(" ", 1)[0]
    lower = first.lower()
    if lower in CURRENCIES:
        return CURRENCIES[lower], len(first)
    if is_glued and len(first) == 1 and first.isascii() and lower not in "gmshljnwvackf°":
        return None, 0
    if lower in _NO_UNIT:
        return ("", len(first)) if is_glued else ("", 0)
    kept = len(first)
    if lower in ("square", "cubic", "sq", "cu") and " " in words:
        lower, kept = words.split(" ")[1].lower(), len(" ".join(words.split(" ")[:2]))
    singular = lower[:-1] if len(lower) > 3 and lower.endswith("s") and not lower.endswith("ss") else lower
    return _UNITS.get(lower, singular), kept


def unit_after_words(words: list[str]) -> str | None:
    """Return the unit in what follows a number in words: nothing, or one word; None if that is no unit."""
    if len(words) > 1 or (words and words[0] in _NO_UNIT):
        return None
    return (unit_of(words[0], is_glued=False)[0] or "") if words else ""

"""Personal data and secrets in texts: found by patterns and checksums, marked by place, masked."""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from ipaddress import ip_address
from typing import Any, NamedTuple

import polars as pl

from rlhf_data.clean.ngrams import listed

FOUND = {"row": pl.UInt32(), "kind": pl.String(), "start": pl.UInt32(), "end": pl.UInt32()}


class Pattern(NamedTuple):
    """One kind of personal data.

    Attributes:
        hint: what every text with it matches, in the regular expressions of Rust (no looking around): texts without
            it are never looked at in Python.
        pattern: the thing itself.
        holds: whether a match is really one: checksums and the like.
    """

    hint: str
    pattern: re.Pattern[str]
    holds: Callable[[str], bool] = lambda _: True


def find(texts: pl.Series | Sequence[str], kinds: Sequence[str] | None = None) -> pl.DataFrame:
    """Where personal data stand in texts.

    Args:
        texts: texts.
        kinds: of `KINDS`; None means all.

    Returns:
        row (into `texts`), kind, start, end (in characters, end exclusive), sorted. Things that overlap are one, of the
        kind of the longest, among equals of the first of `KINDS`.

    Raises:
        ValueError: an unknown kind, or a text that is null.
    """
    wanted = list(KINDS) if kinds is None else list(dict.fromkeys(kinds))
    for kind in wanted:
        if kind not in KINDS:
            raise ValueError(f"no kind {kind!r} of personal data; known kinds: {', '.join(KINDS)}")
    held = listed(texts)
    series = pl.Series("text", held, dtype=pl.String)
    spans = []
    for kind in wanted:
        known = KINDS[kind]
        for row in series.str.contains(known.hint).arg_true():
            spans += [(row, kind, start, end) for start, end in _matches(known, held[row])]
    return _apart(pl.DataFrame(spans, schema=FOUND, orient="row"))


def find_with_presidio(
    texts: pl.Series | Sequence[str], kinds: Sequence[str] | None = None, *, language: str = "en", model: str
) -> pl.DataFrame:
    """`find` by Microsoft's Presidio, which also knows names of people and places, by a spaCy model.

    Args:
        texts: texts.
        kinds: Presidio's entities (PERSON, LOCATION, …); None means all that it knows.
        language: of the texts.
        model: a spaCy model that is installed.

    Returns:
        As `find`; kinds in lower case. Some 200 texts a second; Presidio asks for the list of public suffixes over the
        network once, and does without.

    Raises:
        ModuleNotFoundError: the extra `pii` is not installed.
        ValueError: no such spaCy model.
    """
    analyzer = _analyzer(language, model)
    spans = [
        (row, result.entity_type.lower(), result.start, result.end)
        for row, text in enumerate(listed(texts))
        for result in analyzer.analyze(text, language=language, entities=None if kinds is None else list(kinds))
    ]
    return _apart(pl.DataFrame(spans, schema=FOUND, orient="row"))


def mask(texts: pl.Series, found: pl.DataFrame) -> pl.Series:
    """The texts with each thing found replaced by its kind in brackets: [EMAIL].

    Args:
        texts: the texts that were looked through.
        found: as `find` gives it.
    """
    masked = texts.to_list()
    # From the last to the first, so that the places of those before stay true.
    for row, kind, start, end in found.sort("row", "start", descending=[False, True]).iter_rows():
        masked[row] = f"{masked[row][:start]}[{kind.upper()}]{masked[row][end:]}"
    return pl.Series(texts.name, masked, dtype=pl.String)


def counts(found: pl.DataFrame) -> dict[str, int]:
    """How often each kind was found, in alphabetical order."""
    return dict(found.group_by("kind").len().sort("kind").iter_rows())


def _matches(kind: Pattern, text: str) -> Iterator[tuple[int, int]]:
    """(start, end) of what is of a kind; what only looks like it may hide one that begins within."""
    at = 0
    while match := kind.pattern.search(text, at):
        holds = kind.holds(match[0])
        at = match.end() if holds else match.start() + 1
        if holds:
            yield match.span()


def _apart(found: pl.DataFrame) -> pl.DataFrame:
    """What was found, with things that overlap as one: nothing of the shorter may be left standing beside it."""
    order = {kind: k for k, kind in enumerate(KINDS)}
    joined: list[list] = []  # row, kind, start, end, how good the kind is
    for row, kind, start, end in found.sort("row", "start", "end", "kind").iter_rows():
        rank = (end - start, -order.get(kind, len(order)))
        if joined and joined[-1][0] == row and start < joined[-1][3]:
            last = joined[-1]
            last[3] = max(last[3], end)
            if rank > last[4]:
                last[1], last[4] = kind, rank
        else:
            joined.append([row, kind, start, end, rank])
    return pl.DataFrame([span[:4] for span in joined], schema=FOUND, orient="row")


def _luhn(number: str) -> bool:
    """Whether the last digit of a card's number is its check digit, and its first are an issuer's (ISO/IEC 7812)."""
    digits = [int(c) for c in number if c.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = [sum(divmod(2 * d, 10)) if k % 2 else d for k, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


# Countries by the length of their account numbers (SWIFT, IBAN registry).
_IBAN_COUNTRIES = {
    15: "NO",
    16: "BE",
    18: "DK FI FK FO GL NL SD",
    19: "MK SI",
    20: "AT BA EE KZ LT LU MN XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM SO TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "BI DJ FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU YE",
    31: "MT SC",
    32: "LC",
    33: "RU",
}


# Written in groups of four, or without spaces.
_IBANS = [
    rf"(?:{'|'.join(countries.split())})\d\d(?: ?[A-Z0-9]{{4}}){{{length // 4 - 1}}}"
    + (rf" ?[A-Z0-9]{{{length % 4}}}" if length % 4 else "")
    for length, countries in _IBAN_COUNTRIES.items()
]


def _iban(text: str) -> bool:
    """Whether an account number has the remainder 1 modulo 97 (ISO 13616)."""
    number = text.replace(" ", "")
    return int("".join(str(int(c, 36)) for c in number[4:] + number[:4])) % 97 == 1


def _ip(text: str) -> bool:
    """Whether it is an address of somebody's: neither this machine's own nor nobody's, nor a time or a Perl module."""
    if ":" in text and (text.count(":") < 3 or len(text) < 8):
        return False
    try:
        address = ip_address(text)
    except ValueError:
        return False
    nobodys = address.is_loopback or address.is_unspecified or address.is_multicast or address.is_reserved
    return not nobodys and not text.startswith("0.")


def _phone(text: str) -> bool:
    return 7 <= sum(c.isdigit() for c in text) <= 15  # ITU-T E.164: 15 at most


@cache
def _analyzer(language: str, model: str) -> Any:
    try:
        from presidio_analyzer import AnalyzerEngine  # pyright: ignore[reportMissingImports]
        from presidio_analyzer.nlp_engine import NlpEngineProvider  # pyright: ignore[reportMissingImports]
        from spacy.util import is_package  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("presidio is not installed; pip install 'rlhf_data[pii]'", name=error.name) from None
    if not is_package(model):
        raise ValueError(f"no spaCy model {model!r} is installed; install one, such as en_core_web_sm, with pip")
    engine = NlpEngineProvider(
        nlp_configuration={"nlp_engine_name": "spacy", "models": [{"lang_code": language, "model_name": model}]}
    ).create_engine()
    return AnalyzerEngine(nlp_engine=engine, supported_languages=[language])


_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"

KINDS: dict[str, Pattern] = {
    "url_credentials": Pattern(
        r"://[^\s/@]*:[^\s/@]*@",
        re.compile(r"\b[a-zA-Z][a-zA-Z0-9+.-]{1,20}://[^\s/:@\"'<>]*:[^\s/@\"'<>]+@[^\s\"'<>]*[\w/#&=%-]", re.ASCII),
    ),
    "api_key": Pattern(
        r"(?i)sk-|[sr]k_(live|test)_|gh[pousr]_|github_pat_|glpat-|xox[abeoprs]-|(AKIA|ASIA)[A-Z0-9]|AIza|hf_|npm_"
        r"|pypi-|SG\.|eyJ|PRIVATE KEY",
        re.compile(
            r"(?<![A-Za-z0-9_-])(?:"
            r"sk-(?=[\w-]*\d)(?=[\w-]*[A-Z])[A-Za-z0-9_-]{20,}"  # OpenAI, Anthropic, OpenRouter
            r"|[sr]k_(?:live|test)_[A-Za-z0-9]{16,}"  # Stripe
            r"|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,}|glpat-[A-Za-z0-9_-]{20,}"
            r"|xox[abeoprs]-[A-Za-z0-9-]{10,}"  # Slack
            r"|(?:AKIA|ASIA)[A-Z0-9]{16}"  # AWS
            r"|AIza[A-Za-z0-9_-]{35}"  # Google
            r"|hf_[A-Za-z]{30,}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,}"
            r"|SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"  # SendGrid
            r"|eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"  # JSON Web Tokens
            r")(?![A-Za-z0-9_-])"
            r"|-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----[\s\S]*?(?:-----END (?:[A-Z]+ )*PRIVATE KEY-----|\Z)"
        ),
        # A placeholder such as sk-xxxxxxxxxxxxxxxxxxxxxxxx has few different characters.
        lambda key: len(set(key)) > 10,
    ),
    "email": Pattern(
        r"@",
        re.compile(
            r"(?<![\w.%+-])[A-Za-z0-9](?:[\w.%+-]{0,62}[\w%+-])?@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+"
            r"[A-Za-z]{2,24}(?![\w@-])",
            re.ASCII,
        ),
        lambda address: ".." not in address,
    ),
    "credit_card": Pattern(
        r"[2-6]\d{3}[ -]?\d{4,6}[ -]?\d",
        re.compile(
            r"(?<![\w.+/-])(?:[2456]\d{3}([ -]?)\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|3[47]\d{2}([ -]?)\d{6}\2\d{5})"
            r"(?![\w/-]|\.\d)",
            re.ASCII,
        ),
        _luhn,
    ),
    "iban": Pattern(
        r"[A-Z]{2}\d{2} ?[A-Z0-9]{4}",
        re.compile(f"(?<![A-Za-z0-9])(?:{'|'.join(_IBANS)})(?![A-Za-z0-9])"),
        _iban,
    ),
    "us_ssn": Pattern(
        r"\d{3}-\d{2}-\d{4}",
        # Never given out: area 000, 666 and 9xx, group 00, serial 0000 (Social Security Administration).
        re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])", re.ASCII),
    ),
    "ip_address": Pattern(
        r"\d+\.\d+\.\d+\.\d|[0-9a-fA-F]*:[0-9a-fA-F:]*:",
        re.compile(
            r"(?<![\w.:/-])(?<![vV]ersion )(?<![rR]elease )(?<![sS]ection )"
            rf"(?:{_OCTET}(?:\.{_OCTET}){{3}}|[0-9a-fA-F:]{{2,39}}(?<=[0-9a-fA-F]))"
            r"(?![\w:-]|\.\d)",
            re.ASCII,
        ),
        _ip,
    ),
    "phone": Pattern(
        r"\+\d|\d{3}[ .-]\d{4}",
        re.compile(
            r"(?<![\w+.,/$€£#=*^-])(?:"
            r"\+\d{1,3}(?:[ .-]?\(\d{1,4}\))?(?:(?:[ .-](?=\d\d))?\d){4,12}"  # international
            # North America; three numbers with nothing but spaces between them may be any three numbers.
            r"|(?:1[ .-])?(?:\([2-9]\d{2}\) ?[2-9]\d{2}[ .-]|[2-9]\d{2} [2-9]\d{2}-"
            r"|[2-9]\d{2}(?P<gap>[.-])[2-9]\d{2}(?P=gap))\d{4}"
            r")(?![\w/=*^-]|[.,]\d)",
            re.ASCII,
        ),
        _phone,
    ),
}

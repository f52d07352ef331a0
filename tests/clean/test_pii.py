"""Personal data are found by pattern and checksum; what merely looks like them is left alone."""

import re
import sys

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_data.clean import pii

FOUND = {
    "email": ["jane.doe+x@example.co.uk", "a@d.co", "o_b-1@sub.domain.museum"],
    "phone": [
        "+1 415-555-2671",
        "(415) 555-2671",
        "415.555.2671",
        "1-415-555-2671",
        "+49 30 901820",
        "+44 (0)20 7946 0958",
    ],
    "credit_card": ["4111 1111 1111 1111", "4111-1111-1111-1111", "5555555555554444", "378282246310005"],
    "iban": ["DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432", "BE68 5390 0754 7034", "NO93 8601 1117 947"],
    "us_ssn": ["078-05-1120"],
    "ip_address": ["192.168.1.17", "8.8.8.8", "2001:0db8:85a3::8a2e:0370:7334", "fe80::1ff:fe23:4567:890a"],
    "url_credentials": ["https://bob:s3cret@host.org/x", "postgres://u:p@db:5432/n"],
    "api_key": [
        "sk-proj-abcDEF1234567890ghijKLMN",
        "sk-ant-api03-Q2hhbmdlIG1lIHBsZWFzZQ-abc",
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
        "xoxb-123456789012-abcdefGHIJ",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\nabc=\n-----END RSA PRIVATE KEY-----",
    ],
}
NONE = [
    "released on 2024-01-15 at 12:30:45, that is 15/01/2024 or 01.15.2024",
    "ISBN 978-3-16-148410-0 and 0-306-40615-2",
    "version 1.2.3.4 and v10.2.1.3, then 10.15.7.1-beta; 3.11.2; section 2.4.1.1",
    "pi = 3.14159265358979, 1,234,567.89, 2^10 = 1024, 0.1.2.3",
    "5 + 3 - 2 = 6; f(x) = 2000-1500-3000; +1 2 3 4 5 6 7 8 9; +1+2+3+4+5+6+7; 800 200 3000; 1024 2048 4096 8192",
    "DOI 10.1000/182, arXiv:2305.18290, order 555-1234, id 123456789012",
    "std::vector::iterator, 12:30:45:12, 00:1A:2B:3C:4D:5E, a::b::c::d",
    "4111 1111 1111 1112 and 1234567812345670 and 0000 0000 0000 0000",
    "DE89 3704 0044 0532 0130 01 and AB12CDEF34567890",
    "000-12-3456, 666-12-3456, 900-12-3456, 123-00-4567, 123-45-0000",
    "127.0.0.1 and 0.0.0.0 and 999.1.1.1 and 1.2.3.4.5",
    "@user, a@b, x @ y.z, 3@4.5, http://example.com:8080/@x, git@host",
    "sk-xxxxxxxxxxxxxxxxxxxxxxxx, sk-toggleable__label-arrow-descriptor, AKIA, ghp_short",
    "",
]


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in FOUND.items() for text in texts])
@pytest.mark.parametrize("around", ["{}", "It is {}, he said.", "说：{}。", "({}) and\nmore"])
def test_what_is_personal_is_found_where_it_stands(kind, text, around):
    whole = around.format(text)
    (row,) = pii.find([whole]).rows()
    assert (row[0], row[1], whole[row[2] : row[3]]) == (0, kind, text)


@pytest.mark.parametrize("text", NONE)
def test_what_only_looks_like_personal_data_is_left_alone(text):
    assert [text[start:end] for _, _, start, end in pii.find([text]).iter_rows()] == []


def luhn_digit(digits: str) -> str:
    """The check digit by the definition: doubled from the right, cross sums, complement to ten."""
    total = sum(sum(map(int, str(int(d) * (2 - k % 2)))) for k, d in enumerate(reversed(digits)))
    return str(-total % 10)


@given(st.from_regex(r"4[0-9]{14}", fullmatch=True))
def test_of_the_ten_last_digits_of_a_card_one_makes_it_a_card(digits):
    cards = [d for d in "0123456789" if pii.find([digits + d], ["credit_card"]).height]
    assert cards == [luhn_digit(digits)]


@given(st.from_regex(r"DE00[0-9]{18}", fullmatch=True))
def test_an_iban_has_the_check_digits_of_its_country_and_account(account):
    check = 98 - int(account[4:] + "131400") % 97  # D = 13, E = 14
    right = f"DE{check:02}{account[4:]}"
    assert pii.find([right], ["iban"]).height == 1
    assert pii.find([f"DE{(check + 1) % 100:02}{account[4:]}"], ["iban"]).height == 0


def test_masking_leaves_the_kind_and_all_that_is_not_personal():
    texts = pl.Series("t", ["a@d.co, then 8.8.8.8 and b@d.co", "nothing", "4111 1111 1111 1111"])
    found = pii.find(texts)
    assert pii.mask(texts, found).to_list() == ["[EMAIL], then [IP_ADDRESS] and [EMAIL]", "nothing", "[CREDIT_CARD]"]
    assert pii.counts(found) == {"credit_card": 1, "email": 2, "ip_address": 1}


PIECES = st.sampled_from([t for texts in FOUND.values() for t in texts] + ["hello", "é中", " ", "\n", ".", "42"])


@given(st.lists(st.lists(PIECES, max_size=6).map(" ".join), max_size=4))
def test_a_masked_text_holds_nothing_and_places_do_not_overlap(texts):
    found = pii.find(texts)
    masked = pii.mask(pl.Series(texts, dtype=pl.String), found)
    assert pii.find(masked).is_empty()
    ends = {}
    for row, _, start, end in found.iter_rows():
        assert ends.get(row, 0) <= start < end <= len(texts[row])
        ends[row] = end


def test_a_card_after_digits_that_are_none_is_found():
    text = "BE68 5390 0754 7034 4111 1111 1111 1111"
    assert pii.mask(pl.Series([text]), pii.find([text])).to_list() == ["[IBAN] [CREDIT_CARD]"]


def test_only_the_kinds_asked_for_are_found():
    text = "a@d.co from 8.8.8.8"
    assert pii.find([text], ["email"])["kind"].to_list() == ["email"]
    with pytest.raises(ValueError, match=r"no kind 'mail' of personal data; known kinds: url_credentials, api_key"):
        pii.find([text], ["mail"])


@given(st.lists(PIECES, max_size=6).map(" ".join))
def test_the_hint_of_a_kind_stands_in_every_text_that_has_it(text):
    for kind, known in pii.KINDS.items():
        if any(known.holds(match[0]) for match in known.pattern.finditer(text)):
            assert pii.find([text], [kind]).height


def test_no_pattern_takes_long_over_a_long_text():
    # Quadratic patterns would take minutes over these.
    for text in ("1-" * 50_000, "a." * 50_000 + "@", "a@" * 50_000, "1" * 100_000, "ab:" * 30_000, "x://" * 25_000):
        pii.find([text])


def test_without_presidio_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    pii._analyzer.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=re.escape("pip install 'rlhf_data[pii]'")):
        pii.find_with_presidio(["a"], model="en_core_web_sm")

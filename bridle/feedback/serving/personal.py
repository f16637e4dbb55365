"""What in a text says who somebody is, or opens a door: a pure function, for English and Chinese, that errs on the side of caution.

It looks for forms and checks the sums of those that have one (Luhn's of cards, ISO 7064's of IBANs and Chinese identity numbers). Names
and addresses of houses have no form: that a text holds none is not said.
"""

import re
import unicodedata
from collections.abc import Iterator

# \w, \d and \b mean ASCII alone (A): in Chinese no space stands before a number. A long run of letters is looked at once.
A, ANY_CASE = re.ASCII, re.ASCII | re.IGNORECASE
AT, DOT = (
    r"(?:@|[\[({<]\s*at\s*[\])}>]|\s+at\s+(?=[\w-]+\s+dot\s)|艾特)",
    r"(?:\.|[\[({<]\s*dot\s*[\])}>]|\s+dot\s+|点)",
)
EMAIL = re.compile(
    rf"(?<![\w.+%-])[\w.+%-]+\s*{AT}\s*[\w-]+(?:\s*{DOT}\s*[\w-]+)+|(?<![^\s@])[^\s@]+@[^\s@]+\.[^\W\d_]{{2,}}",
    re.IGNORECASE,
)
# Fifteen digits at most (E.164): international, Chinese mobile and fixed lines, North American.
PHONE = re.compile(
    r"(?<![\w.])(?:\+\s?\d(?:[\s().-]{0,2}\d){6,14}|(?:(?:00)?86[\s-]?)?1[3-9]\d(?:[\s-]?\d){8}|0\d{2,3}[\s-]\d{7,8}"
    r"|\(0\d{2,3}\)\s?\d{7,8}|(?:1[\s.-])?\(\d{3}\)\s?\d{3}[\s.-]?\d{4}|(?:1[\s.-])?\d{3}([\s.-])\d{3}\1\d{4})(?!\w)",
    A,
)
CALLED = (
    r"(?:phone|mobile|\bcell\b|\btel(?:ephone)?\b|call me|text me|whatsapp|wechat|\bqq\b|\bfax\b"
    r"|电话|手机|微信|联系方式|传真|座机)"
)
NAMED_PHONE = re.compile(CALLED + r"[^\d\n]{0,20}\d(?:[\s().-]{0,2}\d){5,14}(?!\d)", ANY_CASE)
CARD = re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,18}(?!\d)", A)
IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z\d]){11,30}(?!\w)", A)
CHINESE_ID = re.compile(r"(?<!\d)\d{6}(?:19|20)\d{9}[\dX](?![\dX])", ANY_CASE)
SOCIAL_SECURITY = re.compile(r"(?<![\d-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])", A)
NAMED_ID = re.compile(
    r"(?:passport|driver'?s? licen[cs]e|national id|identity card|social security|\bssn\b|tax id"
    r"|护照|身份证|驾照|社保|通行证)[^\n\d]{0,24}?(?=[A-Z\d-]*\d{4})[A-Z]{0,3}[\d-]{5,20}",
    ANY_CASE,
)
OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
IPV4 = re.compile(rf"(?<![\w.])(?:{OCTET}\.){{3}}{OCTET}(?!\w|\.\d)", A)
IPV6 = re.compile(
    r"(?<![\w:])(?=[\da-f:]*:[\da-f:]*:)(?=[:a-f]*\d)[\da-f]{0,4}(?::[\da-f]{0,4}){3,7}(?![\w:])", ANY_CASE
)
KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY|(?<![A-Za-z\d])(?:sk|pk|rk)[-_][\w-]{16,}|gh[opsur]_\w{20,}|github_pat_\w{20,}"
    r"|glpat-[\w-]{16,}|hf_\w{20,}|xox[abpr]-[\w-]{10,}|(?:AKIA|ASIA)[A-Z\d]{16}|AIza[\w-]{30,}"
    r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}|(?i:\b(?:bearer|basic)\s+)(?=\S*\d)[\w.~+/=-]{16,}",
    A,
)
NAMED_KEY = re.compile(
    r"(?:password|passwd|passphrase|\bpwd\b|api[ _-]?key|secret(?:[ _-]?key)?|(?:access|auth)[ _-]?token|\bpin\b"
    r"|密码|口令|密钥|令牌)\s*(?:[=:]\s*['\"]?[^\s'\"]{4,}|(?:is|was|are|为|是)\s*['\"]?(?=\S*[\d!#$%^&*])[^\s'\"]{4,})",
    ANY_CASE,
)
URL = re.compile(r"(?<![a-z\d])[a-z][a-z\d+.-]*://[^\s<>\"']{1,2000}", ANY_CASE)
IN_URL = re.compile(
    r"//[^/\s@]*:[^/\s@]*@|/(?=[\w-]*\d)(?=[\w-]*[a-z])[\w-]{32,}"
    r"|[?&;#][\w-]*(?:token|key|secret|sig(?:nature)?|auth|password|pwd|session|sid|code|credential)[\w-]*=[^&\s]{6,}",
    ANY_CASE,
)
NUMERALS, DIGITS = "零一二三四五六七八九〇幺", "012345678901"
SPELT = re.compile(r"[零〇一幺二三四五六七八九][零〇一幺二三四五六七八九\s-]{5,}[零〇一幺二三四五六七八九]")


def personal_data(text: str) -> tuple[str, ...]:
    """What kinds of it a text holds, in this order: email, phone, card, iban, id, ip, key, url. Letters and digits of full width, or of
    other scripts, are those that they look like, and signs that nobody sees are not there."""
    folded = "".join(sign for sign in unicodedata.normalize("NFKC", text) if unicodedata.category(sign) != "Cf")
    folded = "".join(str(int(sign)) if sign.isdecimal() else sign for sign in folded)
    digits = str.maketrans(NUMERALS, DIGITS)
    folded = SPELT.sub(lambda found: found.group().translate(digits), folded)
    return tuple(dict.fromkeys(_kinds_in(folded)))


def _kinds_in(text: str) -> Iterator[str]:
    if EMAIL.search(text):
        yield "email"
    cards = [found.group() for found in CARD.finditer(text) if luhn(digits_of(found.group()))]
    identities = [found.group() for found in CHINESE_ID.finditer(text) if is_chinese_id(found.group())]
    if PHONE.search(text) or NAMED_PHONE.search(text):
        yield "phone"
    if cards:
        yield "card"
    if any(is_iban(found.group()) for found in IBAN.finditer(text.upper())):
        yield "iban"
    if identities or SOCIAL_SECURITY.search(text) or NAMED_ID.search(text):
        yield "id"
    if IPV4.search(text) or IPV6.search(text):
        yield "ip"
    if KEY.search(text) or NAMED_KEY.search(text):
        yield "key"
    if any(IN_URL.search(found.group()) for found in URL.finditer(text)):
        yield "url"


def digits_of(text: str) -> list[int]:
    return [int(sign) for sign in text if sign.isdigit()]


def luhn(digits: list[int]) -> bool:
    """ISO/IEC 7812: every second digit from the right but the first doubled, its own digits added; the sum ends in 0."""
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return len(set(digits)) > 1 and (sum(digits[::-2]) + sum(doubled)) % 10 == 0


def is_iban(text: str) -> bool:
    """ISO 13616: the first four signs put last, letters as 10 to 35: 1 modulo 97. The longest beginning that holds counts, for words
    may follow."""
    plain = text.replace(" ", "")
    return any(
        int("".join(str(int(sign, 36)) for sign in plain[4:end] + plain[:4])) % 97 == 1
        for end in range(15, len(plain) + 1)
    )


def is_chinese_id(text: str) -> bool:
    """GB 11643: weights 2^(18 − place) modulo 11, the last one X for 10: their sum is 1 modulo 11."""
    values = [10 if sign in "Xx" else int(sign) for sign in text]
    return sum(value * pow(2, 17 - place, 11) for place, value in enumerate(values)) % 11 == 1

"""What says who somebody is, is found in the forms in which people write it, and what looks like it is left alone."""

from __future__ import annotations

import pytest

from bridle.feedback.serving.personal import personal_data

FOUND = {
    "email": ["mail ann@example.org", "ann [at] example [dot] org", "ann at example dot org", "邮箱是abc@qq.com", "abc艾特qq点com",
              "ａｎｎ＠ｅｘａｍｐｌｅ．ｃｏｍ", "an\u200bn@exam\u200bple.org", "用户@例子.公司"],
    "phone": ["call +44 20 7946 0958", "(415) 555-2671", "415-555-2671", "我的手机是13812345678。", "138 1234 5678", "+86 138-1234-5678",
              "一三八一二三四五六七八", "幺三八 一二三四 五六七八", "010-62345678", "微信: 1234567",
              "٠١٠-٦٢٣٤٥٦٧٨", "１３８１２３４５６７８"],
    "card": ["4111 1111 1111 1111", "卡号5500-0000-0000-0004", "378282246310005"],
    "iban": ["GB29 NWBK 6016 1331 9268 19", "de89370400440532013000", "to DE89 3704 0044 0532 0130 00 please"],
    "id": ["身份证11010519491231002X", "11010519491231002x", "078-05-1120", "passport number X1234567", "护照号码是E12345678"],
    "ip": ["at 192.168.10.12 today", "地址是10.0.0.1吗", "2001:db8::ff00:42:8329"],
    "key": ["sk-abcdefghijklmnop1234", "ghp_" + "a1" * 15, "AKIAIOSFODNN7EXAMPLE", "my password is hunter22", "密码是abc123",
            "密码：shijie",
            "Authorization: Bearer abcdef0123456789abcdef", "-----BEGIN RSA PRIVATE KEY-----"],
    "url": ["https://x.org/a?token=abcdef123", "见https://x.org/a?sig=aaaaaaa", "https://u:p@x.org/", "https://x.org/s/" + "a1B2" * 10],
}  # fmt: skip
NOT_FOUND = [
    "On 2026-11-30 at 12:30 we met 15 people", "What is 1234567 * 891?", "二十一加三十二是多少", "Version 3.11.7 is out",
    "Look at page 12.",
    "see https://docs.python.org/3/library/re.html#re.ASCII", "I keep my password safe", "一二三四五，上山打老虎",
    "the ratio 3:2:1 of a:b:c",
    "4111111111111112", "GB29 NWBK 6016 1331 9268 18", "110105194912310021", "", "@", "圆周率是3.14159265358979", "token", "a.b.c.d",
]  # fmt: skip


@pytest.mark.parametrize("kind", FOUND)
def test_each_kind_is_found(kind: str) -> None:
    assert [text for text in FOUND[kind] if kind not in personal_data(text)] == []


def test_what_is_none_is_left_alone() -> None:
    assert {text: personal_data(text) for text in NOT_FOUND if personal_data(text)} == {}


def test_several_kinds_are_all_told() -> None:
    assert personal_data("ann@example.org, 13812345678, 10.0.0.1") == ("email", "phone", "ip")

"""Errors in the language of who looks: on a page and in what its scripts print; programs are told in English."""

import re

import pytest

from bridle.core.errors import DataError
from bridle.site.languages import error_sentences, in_words
from tests.labelling_app import STUDY, Site

CHINESE = {"accept-language": "zh-CN"}
PAGE, SCRIPT = {"accept": "text/html", **CHINESE}, {"accept": "application/json", **CHINESE}
IMPORT = f"/studies/{STUDY}/import"


@pytest.mark.parametrize(
    ("who", "path", "sent", "sentence"),
    [
        ("owner", "/people/role", {"handle": "owner", "role": "annotator"}, "'owner' 是唯一的负责人；请先让另一个人成为负责人"),
        ("owner", "/people/role", {"handle": "service", "role": "owner"}, "'service' 的角色是 程序，不能改为 'owner'"),
        ("owner", "/people/invitations", {"role": "owner", "days": "x"}, "days 无效：应为整数"),
        ("owner", f"/studies/{STUDY}/settings", {"topics": "x" * 30_000}, "'topics' 有 30,000 个字符，最多只接受 20,000 个；请缩短"),
        ("annotator", "/me/profile", {"age": "old"}, "年龄 没有选项 'old'；请从"),
    ],
)  # fmt: skip
def test_a_page_says_what_is_wrong_in_its_language(
    site: Site, who: str, path: str, sent: dict[str, str], sentence: str
) -> None:
    answer = site.client(who).post(path, data=sent, headers=PAGE)
    assert answer.status_code == 422 and sentence in answer.text.replace("&#39;", "'")


def test_what_became_of_a_file_is_said_in_the_pages_language(site: Site) -> None:
    owner = site.client("owner")
    image = owner.post(IMPORT, files={"file": ("cat.png", b"\x89PNG\r\n\x1a\n" + bytes(40))}, headers=CHINESE)
    assert image.status_code == 422 and "cat.png 是图片；这里导入的是文本" in image.text
    rows = b'{"chosen": "a", "rejected": "a"}\n{"prompt": 5}\nnot a row\n'
    found = owner.post(IMPORT, files={"file": ("rows.jsonl", rows)}, headers=CHINESE).text
    assert "不是 JSON" in found and "not JSON" not in found


def test_a_script_is_told_in_the_pages_language_and_a_program_in_english(site: Site) -> None:
    client, draft = site.client("annotator"), f"/label/{STUDY}/draft"
    item = re.findall(r'name="item" value="(\w+)"', client.get(f"/label/{STUDY}").text)[0]
    wrong = client.post(f"/label/{STUDY}", data={"item": item, "key": "k", "verdict": "7"}, headers=SCRIPT)
    assert wrong.status_code == 422 and wrong.json()["error"].endswith("无效：应不大于 3，而收到 '7'")
    answer = client.post(draft, content="{", headers=SCRIPT)
    assert answer.status_code == 422 and answer.json() == {"error": "正文不是 JSON；请把表单的字段作为一个对象发送"}
    assert client.post(draft, content="{", headers={"accept": "*/*"}).json()["error"].startswith("the body is not JSON")
    program = site.client("service").post(
        f"/api/studies/{STUDY}/items", json={"prompt": [], "answers": []}, headers=SCRIPT
    )
    assert program.status_code == 422 and program.json()["error"].isascii()


def test_what_differs_stays_but_where_it_is_a_sentence_itself() -> None:
    error = DataError(
        "the judgement of '不在' on item 3f2a ranks ((0,),), but each slot from 0 to 1 must stand in exactly one group"
    )
    assert in_words("zh", str(error)) == (
        "'不在' 对条目 3f2a 的评判的排序为 ((0,),)，但从 0 到 1 的每个答案必须恰好属于一组"
    )
    assert in_words("zh", "a.json does not exist; remove it, and `bridle label plan` writes it anew") == (
        "a.json 不存在；请删除它，`bridle label plan` 会重新生成"
    )
    assert in_words("zh", "{0.__class__} does not exist") == "{0.__class__} 不存在"
    for same in ("nobody says this of {study}", "", "没有这个条目。"):
        assert in_words("zh", same) == same
    assert in_words("en", str(error)) == str(error) and error_sentences("en") == []

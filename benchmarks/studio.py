"""Label Studio with a project of pairs and people with tokens: what benchmarks/labelling.py asks of it. Runs in its environment.

    python studio.py FOLDER PORT PEOPLE ITEMS

Begins its server on its own SQLite, as `label-studio start` does, and prints a line of JSON when all is there: the server's process, the
project, and a header for each person. It ends when its standard input does.
"""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

TOKEN = "0123456789abcdef0123456789abcdef01234567"  # of the owner, of this run alone
CONFIG = """<View><Text name="prompt" value="$prompt"/><Text name="text" value="$a"/><Text name="other" value="$b"/>
<Choices name="better" toName="text"><Choice value="A"/><Choice value="B"/></Choices></View>"""


def ask(port: int, method: str, path: str, body: object) -> object:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), method=method)
    request.add_header("authorization", f"Token {TOKEN}")
    request.add_header("content-type", "application/json")
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def add_people(count: int) -> list[str]:
    import django

    django.setup()
    from organizations.models import Organization
    from rest_framework.authtoken.models import Token
    from users.models import User

    organization, headers = Organization.objects.first(), []
    for number in range(count):
        user = User.objects.create_user(email=f"person{number}@example.org", username=f"person{number}")
        organization.add_user(user)
        user.active_organization = organization
        user.save()
        headers.append(f"authorization: Token {Token.objects.get_or_create(user=user)[0].key}")
    return headers


def main() -> None:
    folder, port, people, items = Path(sys.argv[1]), *map(int, sys.argv[2:])
    quiet = {
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
        "COLLECT_ANALYTICS": "False",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
    }
    os.environ.update(quiet | {"LATEST_VERSION_CHECK": "False", "DJANGO_SETTINGS_MODULE": "core.settings.label_studio"})
    words = [
        "start",
        "--no-browser",
        "--data-dir",
        str(folder),
        "-p",
        str(port),
        "--log-level",
        "ERROR",
        "--internal-host",
        "127.0.0.1",
    ]
    words += [
        "--username",
        "owner@example.org",
        "--password",
        "of this run",
        "--user-token",
        TOKEN,
        "--enable-legacy-api-token",
    ]
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen([Path(sys.executable).with_name("label-studio"), *words], stdout=log, stderr=log)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                if server.poll() is not None:
                    raise RuntimeError((folder / "log").read_text()[-2000:]) from None
                time.sleep(0.5)
        import label_studio

        sys.path.insert(0, str(Path(label_studio.__file__).parent))
        made = ask(port, "POST", "/api/projects", {"title": "pairs", "label_config": CONFIG, "maximum_annotations": 1})
        project = made["id"]
        tasks = [
            {"prompt": f"Question {n}? " + "Please answer in full. " * 5}
            | {side: f"Answer {slot}. " + "It is so because it is so. " * 18 for slot, side in enumerate("ab")}
            for n in range(items)
        ]
        for start in range(0, items, 500):
            ask(port, "POST", f"/api/projects/{project}/import", tasks[start : start + 500])
        print(json.dumps({"pid": server.pid, "project": project, "headers": add_people(people)}), flush=True)
        sys.stdin.read()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()

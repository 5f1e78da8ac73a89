"""Redaction: no secret is in a text that is shown or stored, whatever has put it there."""

import time
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.console.secrets import redact, redact_all
from pipelines.console.text import first_line, one_line, quote_value

CANARY = "c4n/ry@w0rd:&=x"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:CANARY@host:5000/a", "http://***@host:5000/a"),
        ("'https://CANARY@host'", "'https://***@host'"),
        ("see http://user:CAN@ARY@host.", "see http://***@host."),
        ("s3://AKIA:CAN/ARY+x=@bucket/a?region=b", "s3://***@bucket/a?region=b"),
        ("postgresql+psycopg2://u:CANARY@h/db", "postgresql+psycopg2://***@h/db"),
        ("mysql://h/db?user=u&password=CANARY&x=1", "mysql://h/db?user=u&password=***&x=1"),
        ("ray://h:1?token=CANARY", "ray://h:1?token=***"),
        ("/b?X-Amz-Credential=CANARY&X-Amz-Date=1", "/b?X-Amz-Credential=***&X-Amz-Date=1"),
        ("/b?a=1&X-Amz-Signature=CANARY", "/b?a=1&X-Amz-Signature=***"),
        ("s3://b?access_key=CANARY&secret_key=CANARY", "s3://b?access_key=***&secret_key=***"),
        ("https://h/o?AWSAccessKeyId=CANARY&key=CANARY", "https://h/o?AWSAccessKeyId=***&key=***"),
        ("host=h password=CANARY dbname=x", "host=h password=*** dbname=x"),
        ("HF_TOKEN=CANARY python a.py", "HF_TOKEN=*** python a.py"),
        ('{"password": "CANARY", "a": 1}', '{"password": "***", "a": 1}'),
        ('{"db_password":"CAN \\"ARY","a":1}', '{"db_password":"***","a":1}'),
        (r'{"body": "{\"api_key\": \"CANARY\"}"}', r'{"body": "{\"api_key\": \"***\"}"}'),
        ("{'HF_TOKEN': 'CANARY', 'x': 'y'}", "{'HF_TOKEN': '***', 'x': 'y'}"),
        ("[('access_key_id', b'CANARY')]", "[('access_key_id', '***')]"),
        ("Authorization: Bearer CANARY\nAccept: */*", "Authorization: Bearer ***\nAccept: */*"),
        ("{'Authorization': 'Basic CANARY=='}", "{'Authorization': 'Basic ***'}"),
        ("proxy-authorization: CANARY", "proxy-authorization: ***"),
        (r'"headers": "{\"Authorization\": \"Bearer CANARY\"}"', None),
        ("curl -H 'X-Api-Key: CANARY' h", "curl -H 'X-Api-Key: ***' h"),
        ("sent Bearer CANARY.of-16-letters", "sent Bearer ***"),
        ("python a.py --password CANARY --json", "python a.py --password *** --json"),
        ("client -api-key 'CANARY'", "client -api-key '***'"),
        ('["a.py", "--db-password", "CANARY"]', '["a.py", "--db-password", "***"]'),
    ],
)
def test_secrets_are_hidden_by_the_form_of_the_text(text, shown):
    found = redact(text)
    assert shown is None or found == shown
    assert "CAN" not in found
    assert redact(found) == found


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////home/a@b/mlflow.db",
        "http://127.0.0.1:5000/#/experiments/1/a@b",
        "http://host:5000/x?a=b@c",
        "models:/dca-gpt@champion and models:/dca-gpt/1",
        "train.tokens=65536 fit.tokens=5 max_new_tokens=20",
        "python sweep.py model.depth=2,4 search.sampler.name=tpe",
        "def f(key=1): return sorted(x, key=len)",
        "generate.py --max-new-tokens 5 --token --json; pass-token x",
        '{"tokens": "5", "token_count": "6", "sampler": "tpe", "key": "value"}',
        "authorization failed: the bearer of bad news, unexpected token: x",
    ],
)
def test_other_text_stays_as_it_is(text):
    assert redact(text) == text


@pytest.mark.parametrize(
    "name",
    [
        *("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "HF_TOKEN", "WANDB_API_KEY"),
        *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN"),
    ],
)
def test_the_environments_secrets_are_hidden_wherever_they_stand(name, monkeypatch):
    monkeypatch.setenv(name, CANARY)
    shown = redact(f"a{CANARY}b {quote(CANARY, safe='')} {quote(CANARY)}")
    assert "w0rd" not in shown
    assert shown.startswith("a***b")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MLFLOW_TRACKING_URI", "http://user:{}@host"),
        ("http_proxy", "user:{}@proxy:3128"),
        ("HTTPS_PROXY", "http://user:{}@proxy:3128/"),
        ("RAY_ADDRESS", "user:{}@host:6379"),
    ],
)
@pytest.mark.parametrize("form", [CANARY, quote(CANARY, safe="")])
def test_the_password_of_an_address_in_the_environment_is_hidden_alone_too(
    name, value, form, monkeypatch
):
    monkeypatch.setenv(name, value.format(form))
    for text in (value.format(form), f"bad password {CANARY}", f"{quote(CANARY, safe='')!r}"):
        assert "w0rd" not in redact(text)


def test_a_short_word_in_the_environment_is_no_secret(monkeypatch):
    monkeypatch.setenv("A_PASSWORD", "dca")
    monkeypatch.setenv("A_TOKEN", "")
    assert redact("dca.kind") == "dca.kind"


def test_json_data_and_texts_for_people_have_no_secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "CANARY-CANARY")
    data = {"CANARY-CANARY": ["http://a:CANARY@h", ("CANARY-CANARY", 1, None, 2.5)]}
    assert redact_all(data) == {"***": ["http://***@h", ["***", 1, None, 2.5]]}
    place = f"s3://AKIA:{'CANARY' * 100}@bucket"
    assert one_line(place) == first_line(ValueError(place)) == "s3://***@bucket"
    assert quote_value([place]) == '["s3://***@bucket"]'


@given(st.text(st.sampled_from("ab:/@?&=%. '\"é"), max_size=40))
def test_no_text_is_hidden_twice_or_fails(text):
    once = redact(f"http://{text}")
    assert redact(once) == once or "@" in once


@pytest.mark.parametrize(
    ("unit", "count", "start"),
    [("a", 500_000, ""), ("://a:", 20_000, ""), ("?token", 80_000, ""), ("a:", 100_000, "http://")],
)
def test_a_long_text_is_redacted_in_time_that_grows_with_its_length(unit, count, start):
    def seconds(length: int, times: int) -> float:
        text = start + unit * length
        begun = time.process_time()
        for _ in range(times):
            redact(text)
        return time.process_time() - begun

    parts = min(seconds(count // 8, times=8) for _ in range(3))
    resolution = 0.02  # of the clock on some machines
    assert seconds(count, times=1) < 3 * parts + resolution  # 8 times, if it grew with the square


def test_the_environment_may_change_while_it_is_read(monkeypatch):
    class Changing(dict):
        reads = 0

        def keys(self):
            self.reads += 1
            if self.reads < 3:
                raise RuntimeError("dictionary changed size during iteration")
            return super().keys()

        __iter__ = keys

    changing = Changing(A_PASSWORD=CANARY)
    monkeypatch.setattr("os.environ", changing)
    assert redact(f"x{CANARY}") == "x***"
    assert changing.reads >= 3

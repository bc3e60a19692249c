"""The whole configuration is checked at once and says what was expected and what came."""

from datetime import timedelta
from typing import Any

import pytest

from streams.errors import ConfigError
from streams.queues import EMAILS, QUEUES
from streams.settings import Settings, check_worker_type, known_queue, load_settings


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)  # where no .env is
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def test_the_environment_and_a_file_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / ".env").write_text("LEASE=45s\nSNOOZE_LIMIT=7\n")
    monkeypatch.setenv("SNOOZE_LIMIT", "8")
    monkeypatch.setenv("HANDLER_MODULES", " a.b , c,")
    settings = load_settings()
    assert settings.lease == timedelta(seconds=45)
    assert settings.snooze_limit == 8
    assert settings.handler_modules == ("a.b", "c")


def test_every_wrong_variable_is_named_and_no_secret_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEASE", "soon")
    monkeypatch.setenv("KAFKA_PARTITIONS", "0")
    monkeypatch.setenv("WORKER_TYPE", "secondary")
    monkeypatch.setenv("REDIS_PASSWORD", "hunter2")
    with pytest.raises(ConfigError) as refused:
        load_settings()
    told = str(refused.value)
    assert "LEASE: Value error, expected a duration such as 500ms, 30s, 5m, 2h or 7d, got 'soon'" in told
    assert "KAFKA_PARTITIONS: Input should be greater than or equal to 1" in told
    assert "WORKER_TYPE: Input should be 'primary'" in told
    assert "hunter2" not in told


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"lease": "2s"}, "LEASE must be at least 3 s to be renewed in time, got 0:00:02"),
        ({"lease": "1h", "marker_retention": "1h"}, r"MARKER_RETENTION \(1:00:00\) must exceed LEASE"),
        ({"kafka_min_insync": 2}, r"KAFKA_MIN_INSYNC \(2\) must not exceed KAFKA_REPLICATION \(1\)"),
        ({"snooze_limit": 1_000_000}, "SNOOZE_LIMIT: Input should be less than or equal to 999999"),
        ({"revoke_grace": "99999999999d"}, "REVOKE_GRACE: .*less than a billion days"),
        ({"redis_prefix": "a:b"}, "REDIS_PREFIX"),
    ],
)
def test_what_does_not_fit_together_is_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_settings(**wrong)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({}, "redis://127.0.0.1:6379/0"),
        ({"redis_host": "redis", "redis_port": 7000}, "redis://redis:7000/0"),
        (
            {"redis_password": "p@ss/word", "redis_tls_enabled": True},
            "rediss://:p%40ss%2Fword@127.0.0.1:6379/0",
        ),
        ({"redis_url": "redis://elsewhere/3", "redis_host": "redis"}, "redis://elsewhere/3"),
    ],
)
def test_the_redis_url_is_given_or_built(given: dict[str, Any], url: str) -> None:
    settings = load_settings(**given)
    assert settings.redis == url
    assert "p@ss" not in repr(settings)


def test_kafka_is_told_only_what_is_set() -> None:
    assert load_settings().kafka == {
        "bootstrap.servers": "127.0.0.1:9092", "security.protocol": "PLAINTEXT",
    }  # fmt: skip
    secured = load_settings(
        kafka_security_protocol="SASL_SSL", kafka_sasl_mechanism="SCRAM-SHA-512", kafka_sasl_username="streams",
        kafka_sasl_password="hunter2", kafka_ssl_ca_location="/ca.pem",
    )  # fmt: skip
    assert secured.kafka["sasl.password"] == "hunter2"
    assert secured.kafka["ssl.ca.location"] == "/ca.pem"
    assert "hunter2" not in repr(secured)


def test_concurrency_is_the_queues_own_unless_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().concurrency(EMAILS) == 10
    assert load_settings(worker_concurrency=3).concurrency(EMAILS) == 3
    monkeypatch.setenv("CONCURRENCY_EMAILS", "4")
    assert load_settings(worker_concurrency=3).concurrency(EMAILS) == 4
    monkeypatch.setenv("CONCURRENCY_DOCUMENT_PROCESSING", "6")
    assert load_settings().concurrency(QUEUES["document-processing"]) == 6
    for wrong in ("0", "-1", "many", "", "²"):
        monkeypatch.setenv("CONCURRENCY_EMAILS", wrong)
        with pytest.raises(ConfigError, match="CONCURRENCY_EMAILS must be a whole number of at least 1"):
            load_settings().concurrency(EMAILS)


def test_names_are_known_or_refused_with_those_there_are() -> None:
    assert check_worker_type("ai") == "ai"
    assert known_queue("emails") is EMAILS
    for wrong in (None, "", "AI"):
        with pytest.raises(ConfigError, match="one of primary, document, ai, scheduled"):
            check_worker_type(wrong)
    with pytest.raises(ConfigError, match="unknown queue 'mails'; expected one of critical, "):
        known_queue("mails")

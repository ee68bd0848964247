"""No URL, well-formed or not, shows its password: not in messages, settings errors, or errors of drivers."""

from __future__ import annotations

import re
from contextlib import suppress
from unittest.mock import patch

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlalchemy import make_url

from models.database.connection import check_connection, open_database
from models.database.faults import DatabaseUnavailable, database_name
from models.redacted import check_url, redacted, without_secrets
from models.settings import InvalidSettings, Settings, read_settings
from producer.errors import UsageError
from producer.runs.broker import check_broker

#: Parts of passwords: each is found again in whatever shows it.
SECRET = "zqx"
passwords = st.lists(
    st.tuples(st.sampled_from(["", "@", "/", "?", "#", ":", "%", "[", "]", " ", "&", "=", "%40", ";", "é", "\\"])),
    max_size=4,
).map(lambda parts: SECRET + "".join(mark + SECRET for (mark,) in parts))

SHAPES = [
    "{scheme}://user:{password}@127.0.0.1:1/0",
    "{scheme}://:{password}@127.0.0.1:1",
    "{scheme}://user:{password}@[::1]:1/name?sslmode=disable",
    "{scheme}://user:{password}@127.0.0.1:port/name",
    "{scheme}://user:{password}@",
    "{scheme}://user:{password}",
    "{scheme}://:{password}/0",
    "{scheme}:/user:{password}@127.0.0.1:1/0",
    "{scheme}:user:{password}@127.0.0.1",
    "{scheme}://127.0.0.1:1/name?password={password}",
    "{scheme}://127.0.0.1:1/name?user=a&sslpassword={password}&sslmode=disable",
    "user:{password}@127.0.0.1/name",
    "{scheme}//user:{password}@127.0.0.1",
    " {scheme}://user:{password}@127.0.0.1:1/0",
    "host=127.0.0.1 port=1 password={password}",
    "host=127.0.0.1 password='{password}'",
    "{scheme}://user:{password}@127.0.0.1:1,127.0.0.1:2/name",
    "{scheme}://user:{password}@127.0.0.1:99999/name",
    "{scheme}://user@127.0.0.1:1/name;password={password}",
    "{scheme}://user@127.0.0.1:1/name?sslmode=disable;password={password}",
    "{scheme}://user@127.0.0.1:1/name?dbname=password%3D{password}",
    "{scheme}://user@127.0.0.1:1/password={password}",
    "{scheme}://127.0.0.1:1/0 password={password}",
    "jdbc:{scheme}://127.0.0.1:1/name?user=a&password={password}",
]

#: Of URLs that name a file.
FILE_SHAPES = [
    "{scheme}:///name?password={password}",
    "{scheme}:///folder/name?mode=ro&key={password}",
    "{scheme}://:{password}/name",
    "{scheme}://{password}/name",
]
schemes = st.sampled_from(["postgresql", "postgresql+psycopg", "redis", "rediss", "mysql", "postgres"])


def url_of(shape: str, **parts: str) -> str:
    """The URL; nothing can tell a host from the end of a password with an @ where no host follows."""
    assume("@" not in parts["password"] or "@" in shape or "=" in shape)
    return shape.format(**parts)


def hides(told: str) -> bool:
    return SECRET not in told.lower()


@given(
    st.sampled_from(FILE_SHAPES), st.sampled_from(["sqlite", "sqlite+pysqlcipher", "redis+socket", "unix"]), passwords
)
def test_no_url_of_a_file_shows_its_password(shape: str, scheme: str, password: str) -> None:
    url = shape.format(scheme=scheme, password=password)
    assert hides(redacted(url)), redacted(url)
    assert redacted(f"{scheme}:////home/a b/x=1.db") == f"{scheme}:////home/a b/x=1.db"  # a path is shown as it is


@settings(max_examples=400)
@given(st.sampled_from(SHAPES), schemes, passwords)
@example(SHAPES[0], "redis", f"{SECRET}@{SECRET}/{SECRET}")
def test_no_url_shows_its_password(shape: str, scheme: str, password: str) -> None:
    url = url_of(shape, scheme=scheme, password=password)
    assert hides(redacted(url)), redacted(url)
    assert hides(without_secrets(f"cannot use {url}", url)) or len(password) > len(SECRET)
    for check in (lambda: check_url(url, "…"), lambda: open_database(url), lambda: read_settings(broker=url)):
        try:
            check()
        except (ValueError, DatabaseUnavailable, InvalidSettings) as error:
            assert hides(str(error)), str(error)
    with suppress(DatabaseUnavailable):
        assert hides(database_name(open_database(url).url))
    with suppress(Exception):
        assert hides(redacted(make_url(url).render_as_string(hide_password=False)))


@settings(max_examples=25)
@given(st.sampled_from(SHAPES), passwords)
@example("{scheme}://user@127.0.0.1:1/name?sslmode=disable;password={password}", f"{SECRET} {SECRET}")
@example("{scheme}://user:{password}@127.0.0.1:1/0", f"{SECRET}[{SECRET}]{SECRET}")
def test_no_error_of_a_driver_shows_one(shape: str, password: str) -> None:
    for scheme, check in (("postgresql", lambda url: check_connection(open_database(url))), ("redis", check_broker)):
        try:
            check(url_of(shape, scheme=scheme, password=password))
        except (DatabaseUnavailable, UsageError) as error:
            assert hides(str(error)), str(error)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://me:word@db:5432/name?sslmode=require", "postgresql+psycopg://me:***@db:5432/name?sslmode=require"),
        ("redis://:word@host:6379/0", "redis://:***@host:6379/0"),
        ("redis://word@host", "redis://***@host"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("rediss://u:w@[::1]:6379?ssl_cert_reqs=none", "rediss://u:***@[::1]:6379?ssl_cert_reqs=none"),
        ("sqlite:///a folder/night.db", "sqlite:///a folder/night.db"),
        ("redis+socket:///run/redis.sock", "redis+socket:///run/redis.sock"),
        ("night.db", "night.db"),
        ("postgresql://u:p@/night?host=%2Frun%2Fdata", "postgresql://u:***@/night?host=%2Frun%2Fdata"),
    ],
)  # fmt: skip
def test_the_harmless_parts_are_shown(url: str, shown: str) -> None:
    assert redacted(url) == shown


def test_the_remedy_is_named() -> None:
    remedy = "--broker: 'redis://:***@host' is not a URL: in a user or password write @ as %40"
    with pytest.raises(InvalidSettings, match=re.escape(remedy)):
        read_settings(broker=f"redis://:{SECRET}@{SECRET}@host")


def test_settings_that_do_not_validate_keep_their_values_to_themselves() -> None:
    with patch.dict("os.environ", NOCTURNE_BROKER=f"redis://:{SECRET}"):
        with pytest.raises(ValidationError) as raised:
            Settings()
        assert hides(str(raised.value))
        with pytest.raises(InvalidSettings) as told:
            read_settings()
        assert hides(str(told.value)) and "NOCTURNE_BROKER" in str(told.value)

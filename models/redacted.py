"""URLs in messages: nothing that may be a password is printed, and a URL with one in a wrong place is refused.

A URL that cannot be parsed may have its password anywhere. So everything up to the last @ is taken for the login,
whatever the rules of URLs say, and only harmless parts of the rest are shown.
"""

from __future__ import annotations

import re
from urllib.parse import unquote, unquote_plus

HIDDEN = "***"

#: Options of drivers that hold no secret.
SHOWN_OPTIONS = frozenset(
    """
    sslmode sslrootcert ssl_cert_reqs ssl_ca_certs ssl_certfile ssl_keyfile sslcert sslkey ssl_check_hostname
    connect_timeout socket_timeout socket_connect_timeout health_check_interval application_name host hostaddr port db
    dbname user channel_binding gssencmode target_session_attrs keepalives mode timeout virtual_host protocol
    client_encoding prepare_threshold
""".split()
)

SECRET_OPTIONS = frozenset({"password", "sslpassword", "ssl_password", "passfile", "options"})

#: Schemes of URLs that name a file.
PATH_SCHEMES = ("sqlite", "redis+socket", "unix")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)(:/{0,2})(.*)", re.DOTALL)
_PLACE = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.%]*\]|[^:/?#\[\]]*)(?::(?P<port>[^/?#]*))?(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?"
)
#: A host, the path of a database and the value of an option are shown if they hold these characters alone.
_PLAIN_NAME = re.compile(r"[\w.,\-]*")
_PLAIN_PATH = re.compile(r"[\w.,/\-]*")
_PLAIN_VALUE = re.compile(r"[\w.,:/+\-\[\]]*")

_SETTING = re.compile(r"([A-Za-z_]+)\s*=\s*('[^']*'|\S*)")


def redacted(url: str) -> str:
    """The URL without its secrets, well-formed or not."""
    url = str(url)
    match = _SCHEME.fullmatch(url)
    if match is None or (not match[2].endswith("//") and "@" not in url and "=" in url):
        return _without_scheme(url)
    scheme, mark, rest = match.groups()
    login, at, place = rest.rpartition("@")
    if scheme.lower().startswith(PATH_SCHEMES) and mark == "://" and not (at and place.startswith("/")):
        return _path(scheme, rest)
    if re.search("[/?#]", login):
        return f"{scheme}{mark}{HIDDEN}"  # it may be a password with a slash, or an option with an @
    shown = _login(scheme, login) if mark == "://" else HIDDEN
    return f"{scheme}{mark}{shown}{at}{_place(place) if at or mark == '://' else ''}"


def _login(scheme: str, login: str) -> str:
    user, colon, password = login.partition(":")
    if colon:
        return f"{user}:{HIDDEN}" if _is_plain(user) else HIDDEN
    # Of Redis a user without a password is most often a password without its colon.
    return HIDDEN if password or not _is_plain(user) or (login and scheme.lower().startswith("redis")) else login


def _is_plain(user: str) -> bool:
    return re.fullmatch(r"[\w.\-]*", user) is not None


def _path(scheme: str, rest: str) -> str:
    """A file's URL: nothing stands before its path, which may be any; options may follow."""
    path, question, query = rest.partition("?")
    if "@" in rest or (path and not path.startswith("/")):
        return f"{scheme}://{HIDDEN}"
    return f"{scheme}://{path}" + (f"?{'&'.join(map(_option, query.split('&')))}" if question else "")


def _place(place: str) -> str:
    match = _PLACE.fullmatch(place)
    if match is None or not _PLAIN_NAME.fullmatch(match["host"].strip("[]").replace(":", "").partition("%")[0]):
        return HIDDEN
    host, port, path, query = match["host"], match["port"], match["path"], match["query"]
    if port is not None and not _is_port(port, host):
        return f"{host}:{HIDDEN}"  # a login whose @ is missing
    shown = host + (f":{port}" if port is not None else "") + (path if _PLAIN_PATH.fullmatch(path) else f"/{HIDDEN}")
    return shown if query is None else f"{shown}?{'&'.join(map(_option, query.split('&')))}"


def _is_port(port: str, host: str) -> bool:
    return not port or (port.isascii() and port.isdigit() and int(port[:6]) < 2**16 and bool(host))


def _option(option: str) -> str:
    name, _, value = option.partition("=")
    if name.lower() in SHOWN_OPTIONS and _PLAIN_VALUE.fullmatch(unquote(value)):
        return f"{name}={value}"
    return f"{name}={HIDDEN}" if name.lower() in SECRET_OPTIONS else HIDDEN


def _without_scheme(url: str) -> str:
    if "=" in url:  # PostgreSQL's other form: host=… password=…
        found = _SETTING.findall(url)
        return " ".join(_option(f"{name}={value}") for name, value in found) or HIDDEN
    if "@" in url:
        return f"{HIDDEN}@{_place(url.rpartition('@')[2])}"
    return url if ":" not in url else f"{url.partition(':')[0]}:{HIDDEN}"


def without_secrets(text: str, url: str) -> str:
    """A driver's message about the URL without the parts that `redacted` hides."""
    for secret in sorted(_secrets(url), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def _secrets(url: str) -> set[str]:
    """Every part of the URL that its redacted form lacks: as it stands, unquoted by either rule, and in pieces."""
    shown = f"{redacted(url)} {unquote(redacted(url))}"  # the name of a file stands unquoted in a message
    parts = re.split(r"[:@/?#&=\s]+", url)
    unquoted = {form for part in parts for form in (part, unquote(part), unquote_plus(part))}
    pieces = {piece for form in unquoted for piece in re.split(r"[;:@/?#&=\s]+", form)}
    return {each for each in unquoted | pieces if len(each) > 2 and each not in shown}


def check_url(url: str, example: str) -> None:
    """Raises `ValueError` for a URL that drivers would split at a wrong place."""
    match = _SCHEME.fullmatch(url)
    if match is None or not match[2].endswith("//"):
        raise ValueError(f"{redacted(url)!r} is not a URL; give {example}")
    if match[1].lower().startswith(PATH_SCHEMES):
        return
    authority = re.split(r"[/?#]", match[3], maxsplit=1)[0]
    behind = match[3][len(authority) :]
    place = authority.rpartition("@")[2]
    port = re.sub(r"^\[[^\]]*\]", "", place).partition(":")[2]
    if authority.count("@") > 1 or "@" in behind or (port and not _is_port(port, "host")):
        raise ValueError(
            f"{redacted(url)!r} is not a URL: in a user or password write @ as %40, : as %3A, / as %2F, ? as %3F "
            "and # as %23"
        )
    if match[1].lower().startswith("redis") and set("[]") & set(authority.rpartition("@")[0]):
        # Its driver would take it for a host's address, and show it in its error.
        raise ValueError(f"{redacted(url)!r} is not a URL: in a user or password write [ as %5B and ] as %5D")

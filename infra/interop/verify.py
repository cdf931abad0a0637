"""Verifies Karta's session tokens with PyJWT, and sends the runner tokens that PyJWT signs.

Reads the runner's JSON line from stdin; exits at the first failed check.
"""

import base64
import datetime
import json
import platform
import re
import sys
import time
import urllib.error
import urllib.request

import jwt

start = json.load(sys.stdin)
secret = start["session_token_secret"].encode()
slug = "interop-pyjwt"
checks = 0


def check(what, holds, seen=None):
    global checks
    if not holds:
        raise SystemExit(f"{what}; got {seen!r}" if seen is not None else what)
    checks += 1


def call(method, path, bearer, body=None):
    request = urllib.request.Request(start["base_url"] + path, method=method)
    request.add_header("Authorization", f"Bearer {bearer}")
    if body is not None:
        request.add_header("Content-Type", "application/json")
        request.data = json.dumps(body).encode()
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def verifies(token, key=secret):
    try:
        return jwt.decode(token, key, algorithms=["HS256"], options={"require": ["iat", "exp", "jti", "sub"]})
    except jwt.InvalidTokenError:
        return None


def whoami(token):
    return call("GET", f"/v1/projects/{slug}/whoami", token)


def is_refused(what, token):
    status, body = whoami(token)
    check(f"{what} is refused", (status, body.get("detail")) == (401, "Unauthorized"), (status, body.get("detail")))


def tampered(token, part):
    """Returns the token with one character in the middle of one part changed."""
    parts = token.split(".")
    at = len(parts[part]) // 2
    other = "B" if parts[part][at] == "A" else "A"
    parts[part] = parts[part][:at] + other + parts[part][at + 1 :]
    return ".".join(parts)


def base64url(value):
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


# Tokens that Karta mints.

status, body = call("POST", "/v1/agent_projects", start["api_key"], {"slug": slug, "name": "Interop"})
check("a project is created", status == 201, (status, body))
status, minted = call("POST", f"/agent_projects/{slug}/session_tokens", start["api_key"], {"user_id": "user_1"})
check("a token is minted", status == 201, status)
token = minted["token"]

header = jwt.get_unverified_header(token)
check("the header says HS256", header["alg"] == "HS256", header)
check("the header has a kid", re.fullmatch(r"k[0-9a-z]{1,31}", header["kid"]), header)

claims = verifies(token)
check("PyJWT verifies the token", claims is not None)
check("org_id is the organization's", claims["org_id"] == start["organization_id"], claims)
check("org_slug is the organization's", claims["org_slug"] == start["organization_slug"], claims)
check("project_id is the project's", claims["project_id"] == minted["project"]["id"], claims)
check("project_slug is the project's", claims["project_slug"] == slug, claims)
check("scope is session", claims["scope"] == "session", claims)
check("budget_ok is true", claims["budget_ok"] is True, claims)
check("sub is the user", claims["sub"] == "user_1", claims)
check("jti is a string", isinstance(claims["jti"], str) and claims["jti"], claims)
check("akid is an id", isinstance(claims["akid"], int) and 0 < claims["akid"] < 2**53, claims)
check("the token lives 900 s", claims["exp"] - claims["iat"] == 900, claims)
expires_at = datetime.datetime.fromisoformat(minted["expires_at"].replace("Z", "+00:00"))
check("expires_at is exp", int(expires_at.timestamp()) == claims["exp"], minted["expires_at"])
check("there is no aud", "aud" not in claims, claims)

status, own = whoami(token)
check("the token is valid for its project", (status, own.get("kind")) == (200, "session"), (status, own))

for part, name in enumerate(["header", "payload", "signature"]):
    forged = tampered(token, part)
    check(f"PyJWT refuses a changed {name}", verifies(forged) is None)
    is_refused(f"a changed {name}", forged)
other_secret = b"x" * 64
check("PyJWT refuses the token with another secret", verifies(token, other_secret) is None)

# Tokens that PyJWT signs.

now = int(time.time())
fresh = {**claims, "jti": "interop", "iat": now, "exp": now + 900}


def sign(payload, key=secret, algorithm="HS256", kid=header["kid"]):
    return jwt.encode(payload, key, algorithm=algorithm, headers=None if kid is None else {"kid": kid})


status, accepted = whoami(sign(fresh))
check("PyJWT's token is accepted", status == 200, (status, accepted))
check("PyJWT's token has the same session", accepted == own, accepted)
check("exp − iat of 3600 is accepted", whoami(sign({**fresh, "exp": now + 3600}))[0] == 200)

is_refused("alg none", sign(fresh, None, "none"))
_, payload, signature = sign(fresh).split(".")
none = base64url({"alg": "none", "kid": header["kid"]})
is_refused("alg none with a kid and a signature", f"{none}.{payload}.{signature}")
is_refused("HS512 with Karta's secret", sign(fresh, algorithm="HS512"))
is_refused("another secret", sign(fresh, other_secret))
is_refused("an unknown kid", sign(fresh, kid="kunknown"))
is_refused("the kid `current`", sign(fresh, kid="current"))
is_refused("an empty kid", sign(fresh, kid=""))
is_refused("no kid", sign(fresh, kid=None))
is_refused("no exp", sign({name: value for name, value in fresh.items() if name != "exp"}))
is_refused("a past exp", sign({**fresh, "iat": now - 1000, "exp": now - 100}))
is_refused("exp − iat of 3601", sign({**fresh, "exp": now + 3601}))
is_refused("another scope", sign({**fresh, "scope": "admin"}))

print(f"PyJWT {jwt.__version__}, Python {platform.python_version()}: {checks} checks")

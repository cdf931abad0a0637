"""The lifecycle of keys and tokens, tested with any function `call(method, path, bearer, body)`."""

import base64
import hashlib
import hmac
import json
import time

from stack import check, wait_for


def is_rejected(answer):
    """Returns whether the status is 401, or 403 from an emulator that ignores the template's
    gateway responses."""
    return answer[0] in (401, 403)


def keys(call, admin):
    """Creates a key, lists it, and checks its limits. Returns the key's id and token."""
    status, created = call("POST", "/v1/api_keys", admin, {"name": "ci-runner", "scopes": ["read", "write"]})
    check("a key is created", status == 201, (status, created.get("error")))
    api_key, token = created["api_key"], created["secret"]
    status, listed = call("GET", "/v1/api_keys", admin)
    check("the key is listed", status == 200 and api_key["id"] in [key["id"] for key in listed["api_keys"]], (status, listed))
    check("the list does not contain the secret", token not in json.dumps(listed))
    status, own = call("GET", "/v1/whoami", token)
    check("the key is valid", (status, own["api_key_id"], own["scopes"]) == (200, api_key["id"], ["read", "write"]), own)
    status, refused = call("POST", "/v1/api_keys", token, {"name": "more", "scopes": ["admin"]})
    check("the key cannot create keys", (status, refused["detail"]) == (403, "missing scope: admin"), (status, refused))
    return api_key["id"], token


def mint(call, token, slug):
    """Creates a project and mints a session token for one of its users."""
    status, project = call("POST", "/v1/agent_projects", token, {"slug": slug, "name": "Rehearsal"})
    check("a project is created", status == 201, (status, project))
    status, minted = call("POST", f"/v1/agent_projects/{slug}/session_tokens", token, {"user_id": "user_1"})
    check("a session token is minted", status == 201, status)
    return minted["token"]


def session(call, token, slug):
    status, own = call("GET", f"/v1/projects/{slug}/whoami", token)
    check("the session token is valid for its project", (status, own.get("kind"), own.get("sub")) == (200, "session", "user_1"), (status, own))
    status, refused = call("GET", "/v1/api_keys", token)
    check("the session token is rejected elsewhere", status == 403, (status, refused))


def open_session(call, sessions, bearer):
    """Creates a session and lists it. Returns its path."""
    status, created = call("POST", sessions, bearer, {})
    check(f"POST {sessions} creates a session", status == 201, (status, created))
    status, listed = call("GET", sessions, bearer)
    check(f"GET {sessions} lists it", status == 200 and created["id"] in [session["id"] for session in listed["sessions"]], (status, listed))
    return f"{sessions}/{created['id']}"


def turns(call, key, token, slug):
    """Tests sessions of the organization and of a project. Their turns fail, because no provider can be
    reached from here: docs/deploy.md says why. Needs a key of Anthropic and an active release."""
    of_project = f"/v1/projects/{slug}/sessions"
    for sessions, bearer, model in [("/v1/sessions", key, "claude-sonnet-4-5"), (of_project, token, "default")]:
        path = open_session(call, sessions, bearer)
        status, refused = call("GET", f"{path}/stream", bearer)
        check("there is no turn to follow", (status, refused.get("error")) == (409, "no_turn_in_progress"), (status, refused))
        for stream in [False, True]:
            status, failed = call("POST", f"{path}/messages", bearer, {"text": "Hello", "stream": stream, "model": model})
            check(f"a turn with stream={stream} names the provider's fault", (status, failed.get("error")) == (502, "provider_error"), (status, failed))
        status, events = call("GET", f"{path}/stream", bearer)
        check("the turn's event is replayed", status == 200 and events.count("data: ") == 1 and '"code":"provider_error"' in events, (status, events))
        status, listed = call("GET", f"{path}/messages", bearer)
        check("its messages are kept", (status, [message["text"] for message in listed["messages"]]) == (200, ["Hello", "Hello"]), (status, listed))
        status, refused = call("POST", f"{path}/cancel", bearer, {})
        check("there is no turn to cancel", (status, refused.get("error")) == (409, "no_turn_in_progress"), (status, refused))
        check("the session is deleted", call("DELETE", path, bearer)[0] == 204)
        check("the deleted session is missing", call("GET", path, bearer)[0] == 404)
    status, refused = call("POST", "/v1/sessions", token, {})
    check("a session token has no access to /v1/sessions", status == 403, (status, refused))


def verifies(token, ring):
    """Returns whether the ring signed the token. Uses no code of Karta."""
    signed, _, signature = token.rpartition(".")
    header = signed.partition(".")[0]
    kid = json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))["kid"]
    mac = hmac.digest(ring[kid].encode(), signed.encode(), hashlib.sha256)
    return hmac.compare_digest(base64.urlsafe_b64encode(mac).rstrip(b"=").decode(), signature)


def revoke(call, admin, api_key, token):
    """Revokes the key and waits until it is rejected."""
    check("the key is valid until it is revoked", call("GET", "/v1/whoami", token)[0] == 200)
    status, revoked = call("DELETE", f"/v1/api_keys/{api_key}", admin)
    check("a key is revoked", status == 200 and revoked["api_key"]["revoked_at"], (status, revoked))
    start = time.monotonic()
    wait_for("the revoked key is rejected", 5, lambda: True if is_rejected(call("GET", "/v1/whoami", token)) else None)
    check("the revoked key is rejected within 5 s", time.monotonic() - start < 5)

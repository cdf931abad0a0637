"""Deploys the built template to an emulated AWS and tests the stack.

Usage: python deploy.py <the operator's binary> <a folder for this run>
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import boto3
import yaml

import stack as counted
import walk
from stack import Stack, check, request, send, wait_for

karta, run = sys.argv[1], Path(sys.argv[2])
stack = Stack("dev")
inside = {"InternalAllowedIps": "10.0.0.0/8", "InternalHosts": Stack.inside["domainName"]}
ring_names = ["session-signing", "key-tag", "cursor", "audit", "sealing-byok", "sealing-webhooks", "sealing-sessions"]
public = {"/healthz", "/openapi.json", "/docs", "/v1/stripe/events"}
provider_key = "sk-ant-" + "rehearsal0123" * 3


def part(name):
    print(f"[{time.strftime('%H:%M:%S')}] {name}", flush=True)


def operator(subcommand, *arguments):
    """Runs the operator's binary on the stack. Returns its exit code, standard output and standard
    error."""
    stage = stack.stage
    names = {
        "KARTA_TABLE": f"karta-{stage}",
        "KARTA_CREDENTIALS_TABLE": f"karta-credentials-{stage}",
        "KARTA_OUTBOX_TABLE": f"karta-outbox-{stage}",
        "KARTA_USAGE_TABLE": f"karta-usage-{stage}",
        "KARTA_ANCHORS_TABLE": f"karta-anchors-{stage}",
        "KARTA_SESSIONS_TABLE": f"karta-sessions-{stage}",
        "KARTA_SECRET_AUDIT": f"karta/{stage}/audit",
    }
    ran = subprocess.run([karta, subcommand, *arguments], env={**os.environ, **names}, capture_output=True, text=True)
    return ran.returncode, ran.stdout, ran.stderr


def bootstrap():
    ran = subprocess.run(["infra/bootstrap/run.sh", stack.stage, "acme"], env={**os.environ, "KARTA_BIN": karta}, capture_output=True, text=True)
    return ran.returncode, ran.stdout, ran.stderr


# ---------------------------------------------------------------------------------------------------------------- deploy

part("the binaries run on Amazon Linux 2023")
for binary in sorted(Path(".aws-sam/build").glob("*/bootstrap")):
    newest = max(int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", binary.read_bytes()))
    check(f"{binary} needs glibc 2.34 or older", newest <= 34, f"2.{newest}")

part("deploy")
deployed, output = stack.deploy(inside)
check("the stack is deployed", deployed, output[-2000:])
outputs = stack.outputs()
api = stack.physical("Api")
check("the output has the URL", outputs["ApiUrl"] == f"https://{api}.execute-api.us-east-1.amazonaws.com/dev", outputs["ApiUrl"])

first_template = run / "first.yaml"
first_template.write_text(stack.template())

part("invalid parameters are rejected before anything is created")
for wrong, expected in [
    ({"Stage": "Dev"}, "1 to 20 lower-case letters and digits"),
    ({"Architecture": "mips"}, "Architecture"),
    ({"BcryptCost": "9"}, "BcryptCost"),
    ({"InternalAllowedIps": "somewhere"}, "InternalAllowedIps must be"),
    ({"InternalHosts": "https://internal.example.com"}, "InternalHosts must be"),
    ({"DomainName": "api.example.com"}, "DomainName needs a CertificateArn"),
    ({"DisableExecuteApiEndpoint": "true"}, "DisableExecuteApiEndpoint needs a DomainName"),
]:
    refusal = stack.refusal(first_template, wrong)
    check(f"{wrong} is rejected and named", refusal and expected in refusal, refusal)

part("requests without a valid key are rejected")
authorizers = stack.gateway.get_authorizers(restApiId=api)["items"]
check("both authorizers are deployed", sorted(authorizer["type"] for authorizer in authorizers) == ["REQUEST", "TOKEN"], authorizers)
routes = [route for route in stack.routes() if route[0] != "OPTIONS"]
guarded = [route for route in routes if route[2]]
check("the routes are deployed", len(guarded) > 30 and len(routes) > len(guarded), len(routes))
open_routes = {path for _, path, is_guarded in routes if not is_guarded}
stray = {path for path in open_routes if not path.startswith("/v1/internal/")} - public
check("no other route is open", not stray, stray)
junk = "kt_live_" + "0" * 32
for method, path, _ in guarded:
    path = path.replace("{", "").replace("}", "")
    body = None if method == "GET" else {}
    status, answer = stack.call(method, path, None, body)
    # The uncached authorizer is called without a key too. The emulator has its own response for a Deny.
    is_uncached = "/sessions" in path
    check(f"{method} {path} without a key is 401", walk.is_rejected((status,)) if is_uncached else status == 401, (status, answer))
    status, answer = stack.call(method, path, junk, body)
    check(f"{method} {path} with an unknown key is rejected", walk.is_rejected((status,)), (status, answer))
check("/healthz answers", stack.call("GET", "/healthz")[0] == 200)

part("the internal routes")
tokens = json.loads(stack.secret("service-tokens"))
check("the stack generated the operator's token", len(tokens["operator"]) == 64 and tokens["powers"] == {"operator": ["provision"]})
plane = hashlib.sha256(os.urandom(32)).hexdigest()
tokens["powers"]["plane"] = ["validate", "usage", "byok", "releases"]
tokens["plane"] = plane
stack.put_secret("service-tokens", json.dumps(tokens))
whoami = ("InternalWhoami", "GET", "/v1/internal/whoami")
status, answer = stack.internal(*whoami, plane)
check("a data plane's token is accepted", (status, answer) == (200, {"principal_kind": "service"}), (status, answer))
check("an unknown token is rejected", stack.internal(*whoami, "x" * 64)[0] == 401)
for elsewhere in [{"sourceIp": "203.0.113.9"}, {"domainName": "api.example.com"}]:
    status, _ = stack.internal(*whoami, plane, inside={**Stack.inside, **elsewhere})
    check(f"an internal route is 404 for {elsewhere}", status == 404, status)
check("an internal route is 404 through a gateway without a host", stack.call("GET", whoami[2], plane)[0] == 404)

part("bootstrap")
code, printed, errors = bootstrap()
check("the first organization is created", code == 0, errors)
first = json.loads(printed)
admin, organization = first["api_key"], first["organization_id"]
code, printed, errors = bootstrap()
check("a second bootstrap is rejected", code != 0 and not printed and "the organization acme already exists" in errors, errors)

# ------------------------------------------------------------------------------------------------------------- API calls

call = stack.call

part("keys")
status, own = call("GET", "/v1/whoami", admin)
check("the first key is valid", (status, own["organization_id"], own["organization_slug"]) == (200, organization, "acme"), own)
api_key, token = walk.keys(call, admin)
twice = [call("POST", "/v1/api_keys", admin, {"name": "twice", "scopes": ["read"]}, {"Idempotency-Key": "rehearsal"}) for _ in range(2)]
check("a repeated create has one effect", twice[0][0] == 201 and twice[0] == twice[1], twice[0][0])
status, rotated = call("POST", f"/v1/api_keys/{twice[0][1]['api_key']['id']}/rotate", admin, {"grace_seconds": 3600})
check("a key is rotated", status == 201 and rotated["replaces"]["id"] == twice[0][1]["api_key"]["id"], status)
check("the old and the new key are valid", {call("GET", "/v1/whoami", key)[0] for key in [twice[0][1]["secret"], rotated["secret"]]} == {200})
validate = ("InternalKeysValidate", "POST", "/v1/internal/keys/validate", plane)
status, verdict = stack.internal(*validate, {"key": token})
check("a data plane validates a key", (status, verdict["valid"], verdict["organization_id"]) == (200, True, organization), verdict)

part("mint")
session = walk.mint(call, token, "my-app")
walk.session(call, session, "my-app")
check("the token is signed with the ring", walk.verifies(session, json.loads(stack.secret("session-signing"))))

part("releases")
status, deploy = call("POST", "/v1/agent_projects/my-app/deploys", token, {"commit_sha": "0a1b2c3"})
check("a release is deployed", (status, deploy["release"]["version"], deploy["release"]["status"]) == (201, 1, "active"), (status, deploy))

part("BYOK")
status, model_key = call("POST", "/v1/model_keys", admin, {"provider": "anthropic", "key": provider_key})
check("a provider key is stored", status == 201 and model_key["model_key"]["tail"] == provider_key[-4:], (status, model_key))


def can_open_provider_key():
    query = {"organization_id": str(organization), "provider": "anthropic"}
    status, opened = stack.internal("InternalModelKeysActive", "GET", "/v1/internal/model_keys/active", plane, query=query)
    return status == 200 and opened["plaintext"] == provider_key


check("a data plane opens the provider key", can_open_provider_key())
table = json.dumps(boto3.client("dynamodb").scan(TableName="karta-dev")["Items"], default=repr)
check("the table does not contain the plain key", provider_key not in table and len(table) > 1000)

part("sessions")
check("the project has a model", call("PATCH", "/v1/agent_projects/my-app", admin, {"model_id": "claude-sonnet-4-5"})[0] == 200)
status, organization_sessions = call("GET", "/v1/sessions", token)
check("a new organization has no sessions", (status, organization_sessions) == (200, {"sessions": [], "next_cursor": None}), (status, organization_sessions))
walk.turns(call, token, session, "my-app")

part("usage")
now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
events = [
    {"api_key_id": api_key, "kind": kind, "quantity": quantity, "model": "gpt-4o", "occurred_at": now, "client_event_id": f"rehearsal-{kind}"}
    for kind, quantity in [("input_tokens", 1_000_000), ("output_tokens", 10)]
]
report = ("InternalUsageEventsCreate", "POST", "/v1/internal/usage/events", plane)
check("usage is counted", stack.internal(*report, {"events": events}) == (202, {"accepted": 2, "duplicates": 0, "rejected": [], "unpriced": []}))
check("repeated usage is not counted", stack.internal(*report, {"events": events}) == (202, {"accepted": 0, "duplicates": 2, "rejected": [], "unpriced": []}))
status, usage = call("GET", "/v1/usage", token)
check("usage is returned", (status, usage["totals"]["total_tokens"]) == (200, 1_000_010), (status, usage))

part("budget")
status, budget = call("PUT", "/v1/budget", admin, {"total_tokens": 1_000_000})
check("a budget is set", status == 200 and budget["budget"]["total_tokens"] == 1_000_000, (status, budget))
status, refused = call("POST", "/v1/agent_projects/my-app/session_tokens", token, {})
check("an exhausted budget blocks minting", (status, refused.get("reason")) == (402, "monthly token cap reached"), (status, refused))
_, verdict = stack.internal(*validate, {"key": token})
check("validation reports the exhausted budget", (verdict["valid"], verdict["budget_ok"]) == (True, False), verdict)
check("the caps are removed", call("PUT", "/v1/budget", admin, {})[0] == 200)
check("minting works again", call("POST", "/v1/agent_projects/my-app/session_tokens", token, {})[0] == 201)

part("webhooks")
url = "https://hooks.example.com/karta"
status, refused = call("POST", "/v1/webhook_endpoints", admin, {"url": "https://127.0.0.1/", "event_types": ["*"]})
check("a webhook to a private address is rejected", (status, refused["field"]) == (422, "url"), (status, refused))
status, made = call("POST", "/v1/webhook_endpoints", admin, {"url": url, "event_types": ["api_key.created"]})
check("a webhook endpoint is created", status == 201 and made["secret"].startswith("whsec_"), status)
endpoint = f"/v1/webhook_endpoints/{made['webhook_endpoint']['id']}"


def attempted(event_type):
    """Returns the attempts to deliver an event of this type; None before the first."""
    _, deliveries = call("GET", f"{endpoint}/deliveries", admin)
    found = [delivery for delivery in deliveries["deliveries"] if delivery["event_type"] == event_type]
    return next((delivery["attempts"] for delivery in found if delivery["attempts"]), None)


status, tested = call("POST", f"{endpoint}/test", admin)
check("a test event is pending", (status, tested["delivery"]["status"]) == (202, "pending"), (status, tested))
check("creating a key publishes an event", call("POST", "/v1/api_keys", admin, {"name": "published", "scopes": ["read"]})[0] == 201)
for event_type in ["ping", "api_key.created"]:
    attempts = wait_for(f"{event_type} is signed and attempted", 100, lambda: attempted(event_type))
    check("the attempt gets no response", attempts[0]["response_code"] is None and attempts[0]["error"], attempts)

part("revoke")
spare, spare_token = walk.keys(call, admin)
walk.revoke(call, admin, spare, spare_token)
check("validation rejects the revoked key", stack.internal(*validate, {"key": spare_token}) == (200, {"valid": False, "code": "revoked"}))

part("audit log")
_, error, logged = stack.invoke("WorkerAuditChain", {})
check("the chaining worker runs", error is None, logged)
code, printed, errors = operator("audit-verify", "--deployed")
check("the audit log is whole", code == 0 and f"organization {organization}: intact" in printed and ", 0 pending," in printed, printed + errors)
check("the audit log contains the bootstrap", any(event["actor"]["name"] == "bootstrap" for event in call("GET", "/v1/audit_events?limit=100", admin)[1]["audit_events"]))

# ---------------------------------------------------------------------------------------------------------------- faults

part("missing or malformed settings fail the start")
environment = stack.environment("StripeEventsCreate")
stripe = stack.secret("stripe")


def check_failed_start(what, expected, text=None, variables=None):
    """Starts the function with this secret or these variables. Checks that it fails with the
    expected text."""
    if text is not None:
        stack.put_secret("stripe", text)
    stack.configure("StripeEventsCreate", Environment={"Variables": variables or environment})
    answer, error, logged = stack.invoke("StripeEventsCreate", {})
    output = json.dumps(answer) + logged
    check(f"{what} fails the start", error is not None, answer)
    check(f"{what} is named: {expected}", expected in output, output)
    check(f"{what} is not printed", "s3cret" not in output)


check_failed_start("a malformed secret", "the stripe secret is malformed", text='{"livemode": "s3cret"}')
stack.put_secret("stripe", stripe)
check_failed_start("a missing secret", "the stripe secret cannot be fetched", variables={**environment, "KARTA_SECRET_STRIPE": "karta/dev/gone"})
check_failed_start("a missing variable", "KARTA_TABLE is not set", variables={**environment, "KARTA_TABLE": ""})
stack.configure("StripeEventsCreate", Environment={"Variables": environment})
check("the function starts with the original settings", stack.call("POST", "/v1/stripe/events", None, {})[0] in (400, 404, 503))

# -------------------------------------------------------------------------------------------- deploys over existing data

rings = {name: stack.secret(name) for name in ring_names}


def check_data(when):
    """Checks that everything created earlier still exists and works."""
    check(f"{when}, the rings are unchanged", {name: stack.secret(name) for name in ring_names} == rings)
    check(f"{when}, the first key is valid", call("GET", "/v1/whoami", admin)[0] == 200)
    check(f"{when}, a later key is valid", call("GET", "/v1/whoami", token)[0] == 200)
    walk.session(call, session, "my-app")
    check(f"{when}, the provider key opens", can_open_provider_key())
    check(f"{when}, usage is returned", call("GET", "/v1/usage", token)[1]["totals"]["total_tokens"] == 1_000_010)
    status, tested = call("POST", f"{endpoint}/test", admin)
    check(f"{when}, the webhook endpoint exists", status == 202, (status, tested))
    delivery = tested["delivery"]["id"]

    def delivery_attempts():
        deliveries = call("GET", f"{endpoint}/deliveries", admin)[1]["deliveries"]
        return next((found["attempts"] or None for found in deliveries if found["id"] == delivery), None)

    wait_for(f"{when}, the webhook's secret opens and signs", 100, delivery_attempts)


def write(name):
    status, created = call("POST", "/v1/api_keys", admin, {"name": name, "scopes": ["read"]})
    check(f"{name} is written", status == 201, (status, created.get("error")))
    return created["secret"]


def next_template(text, authorizer):
    """Returns the template with a changed memory size of the authorizer, and its code from this
    folder."""
    described = yaml.safe_load(text)
    properties = described["Resources"]["Authorizer"]["Properties"]
    properties |= {"MemorySize": 2048, "CodeUri": str(authorizer)}
    return yaml.safe_dump(described, sort_keys=False)


part("a second deploy with a changed template, changed code and a custom domain")
changed = run / "authorizer"
changed.mkdir()
shutil.copy2(".aws-sam/build/Authorizer/bootstrap", changed)
with (changed / "bootstrap").open("ab") as code:
    code.write(b"\0")
template = run / "next.yaml"
template.write_text(next_template(first_template.read_text(), changed))
before = stack.functions.get_function_configuration(FunctionName=stack.physical("Authorizer"))
certificate = boto3.client("acm").request_certificate(DomainName="api.example.com")["CertificateArn"]
domain = {"DomainName": "api.example.com", "CertificateArn": certificate}
deployed, output = stack.deploy({**inside, **domain, "LogRetentionDays": "14"}, template)
check("the second deploy succeeds", deployed, output[-2000:])
after = stack.functions.get_function_configuration(FunctionName=stack.physical("Authorizer"))
check("memory and code are changed", after["MemorySize"] == 2048 and after["CodeSha256"] != before["CodeSha256"], after["MemorySize"])
check("the URL is the domain's", stack.outputs()["ApiUrl"] == "https://api.example.com", stack.outputs()["ApiUrl"])
status, _, own = send(request(stack.endpoint + "/v1/whoami", "GET", admin, headers={"Host": "api.example.com"}))
check("the domain serves the API", (status, own.get("organization_id")) == (200, organization), (status, own))
check_data("after a second deploy")
between = write("between")

part("a failed deploy")
deployed, output = stack.deploy({**inside, **domain, "HostedZoneId": "Z0NOSUCHZONE", "BcryptCost": "13"}, template)
check("the deploy fails and names the missing zone", not deployed and "Z0NOSUCHZONE" in output, output[-2000:])
check("the deploy is rolled back", stack.status() == "UPDATE_ROLLBACK_COMPLETE", stack.status())
check("the rollback restores the parameters", stack.environment("ApiKeysCreate")["KARTA_BCRYPT_COST"] == "12")
check_data("after a failed deploy")

part("rollback to the first template and code")
deployed, output = stack.deploy(inside, first_template)
check("the rollback succeeds", deployed, output[-2000:])
back = stack.functions.get_function_configuration(FunctionName=stack.physical("Authorizer"))
check("memory and code are restored", (back["MemorySize"], back["CodeSha256"]) == (before["MemorySize"], before["CodeSha256"]), back["MemorySize"])
check_data("after a rollback")
check("a key from before the rollback is valid", call("GET", "/v1/whoami", between)[0] == 200)

part("teardown")
ran = subprocess.run(["sam", "delete", "--stack-name", stack.name, "--no-prompts", "--region", "us-east-1"], capture_output=True, text=True)
check("the stack is deleted", ran.returncode == 0, ran.stdout + ran.stderr)
check("its tables remain", {"karta-dev", "karta-credentials-dev", "karta-outbox-dev", "karta-usage-dev", "karta-anchors-dev", "karta-sessions-dev"} <= set(stack.tables.list_tables()["TableNames"]))
check("its rings remain", {name: stack.secret(name) for name in ring_names} == rings)

print(f"deploy rehearsal: {counted.checks} passed, 0 failed")

set shell := ["bash", "-euo", "pipefail", "-c"]

# What `just tools` installs comes before the same tool elsewhere.
export PATH := justfile_directory() / "target/tools/bin" + ":" + justfile_directory() / "target/tools/venv/bin" + ":" + env("PATH")
export SAM_CLI_TELEMETRY := "0"

# List the recipes.
default:
    @just --list --unsorted

# Install the pinned tools (cargo-deny, just, SAM CLI) under target/tools.
tools:
    infra/checks/tools.sh

# Everything that CI runs, in its order.
check: fresh (step "test") (step "check-logs") (step "check-rights") (step "interop") (step "contract") (step "sdk") (step "docs") (step "prose") (step "fmt-check") (step "clippy") (step "deny") (step "validate") (step "check-scripts") (step "deploy-rehearsal") (step "sam-local") (step "starts")

# Every test of every crate.
test:
    cargo test --workspace

# No secret that the tests made is in a log that they wrote.
check-logs:
    infra/checks/log-secrets.sh

# What the functions did in the whole test run is what their policies allow, and all of it.
check-rights:
    cargo test --workspace --test it -- --ignored rights:: | tee target/run/rights.txt
    grep -q '^test result: ok. 1 passed' target/run/rights.txt

# Write docs/permissions.md anew from template.yaml.
permissions:
    KARTA_UPDATE=1 cargo test --workspace --test it the_page_of_permissions_is_the_templates

# Session tokens against jose (Node.js) and PyJWT, Stripe's signatures against the stripe library, our webhooks against what docs/webhooks.md prints.
interop:
    infra/interop/run.sh

# What the API's document allows and what it does not, sent to every operation by Schemathesis.
contract:
    infra/contract/run.sh

# Write openapi.json anew, with the answers of a run as its examples.
openapi:
    KARTA_UPDATE=1 cargo test --workspace --test it every_operation_answers_as_the_document_says

# The TypeScript client: build, types, their agreement with openapi.json, tests against the runner, size, package.
sdk:
    infra/checks/sdk.sh

# What README.md, the quickstart and the migration guide print, run as printed; docs/errors.md against what is answered.
docs:
    infra/docs/run.sh

# Check the wording of comments, documents, messages and test names. List findings: just prose -v docs
prose *args:
    infra/checks/prose.py {{ args }}

# Format the Rust code.
fmt:
    cargo fmt --all

# The Rust code is formatted.
fmt-check:
    cargo fmt --all --check

# Lints, warnings denied.
clippy:
    cargo clippy --workspace --all-targets --locked -- -D warnings

# Banned crates, licences, sources.
deny:
    cargo deny --locked check bans licenses sources

# template.yaml, through SAM and cfn-lint.
validate:
    AWS_DEFAULT_REGION=us-east-1 sam validate --lint

# Shell scripts.
check-scripts:
    shellcheck .ci/run infra/*/*.sh

# Build, deploy to an emulated AWS, walk, deploy again, roll back, tear down.
deploy-rehearsal:
    infra/e2e/deploy.sh

# The built functions in Docker, behind sam local start-api.
sam-local:
    infra/e2e/sam-local.sh

# No built function starts with a setting missing or wrong; worker-secrets-rotation, on which no other depends, is left out.
starts: functions
    cargo build --quiet --locked --workspace --example cold
    "${CARGO_TARGET_DIR:-target}/debug/examples/cold" --starts 0

# The first organization of a deployed stage and its key: just bootstrap prod acme
bootstrap stage slug:
    @infra/bootstrap/run.sh {{ quote(stage) }} {{ quote(slug) }}

# Criterion benches, then the load script.
bench:
    cargo bench -p karta-shared
    cargo build --release --locked -p karta-local --bin karta --example load
    target/release/examples/load

# Validation over a million keys against validation over a thousand: just scale 100000 for a quicker look.
scale keys="1000000":
    cargo run --release -p karta-local --example scale -- {{ quote(keys) }}

# What counting usage costs, and a day of 100,000 events replayed through faults: just usage 10000 for a quicker look.
usage events="100000":
    cargo run --release -p karta-local --example usage -- {{ quote(events) }}

# Webhooks: how soon, how many, beside a dead endpoint, under kills.
webhooks events="10000":
    cargo run --release -p karta-local --example webhooks -- {{ quote(events) }}

# better-auth's API keys beside ours, as ratios: verify, refuse, list, create, start, memory. Under five minutes once built.
bench-peers:
    cd infra/peers && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
    cargo build --release --locked -p karta-local --bin karta --example load
    target/release/examples/load peers

# How functions start, what they answer and weigh: just cold --starts 3 whoami for a quick look. A whole run is kept in docs/performance.md.
cold *args: functions
    cargo build --release --locked -p karta-local --example cold
    target/release/examples/cold {{ args }}

# Every function as it is deployed, under target/lambda.
functions:
    infra/e2e/functions.sh

# Verify the audit logs of .karta/, or of a deployed stack: just audit-verify --deployed
audit-verify *args:
    cargo run --quiet -p karta-local -- audit-verify {{ args }}

# Lay out functions/<resource>-<verb>/, for example: just new-route api-keys rotate
new-route resource verb:
    @infra/scaffold/new-route.sh {{ quote(resource) }} {{ quote(verb) }}

# The checks over a whole run must not read what an earlier one left.
[private]
fresh:
    rm -rf target/run

[private]
step recipe:
    @echo "=== {{ recipe }}"
    @start=$SECONDS; just {{ recipe }}; echo "=== {{ recipe }}: $((SECONDS - start)) s"

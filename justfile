set shell := ["bash", "-euo", "pipefail", "-c"]

# Prefer the tools that `just tools` installs.
export PATH := justfile_directory() / "target/tools/bin" + ":" + justfile_directory() / "target/tools/venv/bin" + ":" + env("PATH")
export SAM_CLI_TELEMETRY := "0"

# List the recipes.
default:
    @just --list --unsorted

# Install the pinned tools (cargo-deny, just, SAM CLI) under target/tools.
tools:
    infra/checks/tools.sh

# Run everything that CI runs, in CI's order.
check: fresh (step "test") (step "check-logs") (step "check-rights") (step "streams") (step "interop") (step "contract") (step "sdk") (step "docs") (step "prose") (step "fmt-check") (step "clippy") (step "deny") (step "validate") (step "check-scripts") (step "deploy-rehearsal") (step "sam-local") (step "starts")

# Run all Rust tests.
test:
    cargo test --workspace

# Search the logs of the last test run for its secrets.
check-logs:
    infra/checks/log-secrets.sh

# Check that the AWS calls of the last test run match the IAM policies exactly.
check-rights:
    cargo test --workspace --test it -- --ignored rights:: | tee target/run/rights.txt
    grep -q '^test result: ok. 1 passed' target/run/rights.txt

# Regenerate docs/permissions.md from template.yaml.
permissions:
    KARTA_UPDATE=1 cargo test --workspace --test it permissions_page_is_up_to_date

# Decode recorded provider streams, if their folder is present.
streams:
    infra/checks/streams.sh

# Check tokens, Stripe events, webhooks and the samples of docs/webhooks.md with other libraries.
interop:
    infra/interop/run.sh

# Send valid and invalid requests to every operation of openapi.json, with Schemathesis.
contract:
    infra/contract/run.sh

# Regenerate openapi.json, with responses of a test run as examples.
openapi:
    KARTA_UPDATE=1 cargo test --workspace --test it every_operation_matches_the_openapi_document

# Build, type-check, test and pack the TypeScript clients, and compare them with openapi.json.
sdk:
    infra/checks/sdk.sh

# Run the commands that the documentation prints; check docs/errors.md and all links.
docs:
    infra/docs/run.sh

# Check the wording of comments, documents, messages and test names. List findings: just prose -v docs
prose *args:
    infra/checks/prose.py {{ args }}

# Format the Rust code.
fmt:
    cargo fmt --all

# Check the format of the Rust code.
fmt-check:
    cargo fmt --all --check

# Lint the Rust code, with warnings denied.
clippy:
    cargo clippy --workspace --all-targets --locked -- -D warnings

# Check the crates' licences and sources, and for banned crates.
deny:
    cargo deny --locked check bans licenses sources

# Validate template.yaml with SAM and cfn-lint.
validate:
    AWS_DEFAULT_REGION=us-east-1 sam validate --lint

# Lint the shell scripts.
check-scripts:
    shellcheck .ci/run infra/*/*.sh

# Build, deploy to an emulated AWS, test the stack, upgrade it, roll it back and delete it.
deploy-rehearsal:
    infra/e2e/deploy.sh

# Test the built functions in Docker behind sam local start-api.
sam-local:
    infra/e2e/sam-local.sh

# Check that no built function (except worker-secrets-rotation) starts with a missing or invalid setting.
starts: functions
    cargo build --quiet --locked --workspace --example cold
    "${CARGO_TARGET_DIR:-target}/debug/examples/cold" --starts 0

# Create the first organization of a deployed stage and print its key: just bootstrap prod acme
bootstrap stage slug:
    @infra/bootstrap/run.sh {{ quote(stage) }} {{ quote(slug) }}

# Run the criterion benches and the load test.
bench:
    cargo bench -p karta-shared
    cargo build --release --locked -p karta-local --bin karta --example load
    target/release/examples/load

# Compare validation with a million keys and with a thousand. For a quick run: just scale 100000
scale keys="1000000":
    cargo run --release -p karta-local --example scale -- {{ quote(keys) }}

# Measure usage counting, and replay 100,000 events with faults. For a quick run: just usage 10000
usage events="100000":
    cargo run --release -p karta-local --example usage -- {{ quote(events) }}

# Measure webhook latency and throughput, with a dead endpoint and with killed workers.
webhooks events="10000":
    cargo run --release -p karta-local --example webhooks -- {{ quote(events) }}

# Measure turns beside direct calls to a scripted provider. For one part: just bench-turns latency
bench-turns part="":
    cargo build --release --locked -p karta-local --bin karta --example turns
    target/release/examples/turns {{ part }}

# Compare Karta with better-auth's API keys, on Linux only.
bench-peers:
    cd infra/peers && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
    cargo build --release --locked -p karta-local --bin karta --example load
    target/release/examples/load peers

# Measure each function's start, responses, memory and size. For a quick run: just cold --starts 3 whoami
cold *args: functions
    cargo build --release --locked -p karta-local --example cold
    target/release/examples/cold {{ args }}

# Build every function for deployment, under target/lambda.
functions:
    infra/e2e/functions.sh

# Verify the audit logs of .karta/, or of a deployed stack: just audit-verify --deployed
audit-verify *args:
    cargo run --quiet -p karta-local -- audit-verify {{ args }}

# Create the folder of a route and print the remaining steps: just new-route api-keys rotate
new-route resource verb:
    @infra/scaffold/new-route.sh {{ quote(resource) }} {{ quote(verb) }}

# Delete the files of earlier test runs, which the checks must not read.
[private]
fresh:
    rm -rf target/run

[private]
step recipe:
    @echo "=== {{ recipe }}"
    @start=$SECONDS; just {{ recipe }}; echo "=== {{ recipe }}: $((SECONDS - start)) s"

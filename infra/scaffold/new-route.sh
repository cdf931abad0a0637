#!/usr/bin/env bash
# Creates functions/<resource>-<verb>/ and prints the remaining steps.
set -euo pipefail
cd "$(dirname "$0")/../.."

die() {
  echo "new-route: $1" >&2
  exit 1
}

(($# == 2)) || die "usage: new-route <resource> <verb>, for example: new-route api-keys rotate"
for word in "$1" "$2"; do
  [[ $word =~ ^[a-z][a-z0-9]*(-[a-z0-9]+)*$ ]] || die "\`$word\` must be lower-case words separated by hyphens"
done
name=$1-$2
folder=functions/$name
[[ ! -e $folder ]] || die "$folder exists"

crate=${name//-/_}
camel=$(sed -E 's/(^|-)([a-z0-9])/\U\2/g' <<<"$name")

mkdir -p "$folder/src"
cat >"$folder/Cargo.toml" <<TOML
[package]
name = "$name"
version.workspace = true
edition.workspace = true
rust-version.workspace = true
license.workspace = true
publish.workspace = true

[lib]
test = false
doctest = false

[[bin]]
name = "$name"
test = false

[dependencies]
karta-shared.workspace = true
serde.workspace = true
tokio.workspace = true
utoipa.workspace = true

[lints]
workspace = true
TOML

cat >"$folder/src/lib.rs" <<RUST
//! One sentence about this route.

use karta_shared::{
    App,
    http::{ApiResponse, Call, Error, NoBody, NoQuery, Read, Route},
};
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
pub struct Output {}

#[derive(Debug)]
pub struct $camel;

impl Route for $camel {
    const NAME: &'static str = "$name";
    type Access = Read;
    type Path = ();
    type Query = NoQuery;
    type Body = NoBody;
    type Output = Output;

    async fn handle(_app: &App, _call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        ApiResponse::ok(&Output {})
    }
}
RUST

cat >"$folder/src/main.rs" <<RUST
use std::process::ExitCode;

use karta_shared::http;

#[tokio::main]
async fn main() -> ExitCode {
    http::run::<$crate::$camel>().await
}
RUST

echo "Created $folder. The function in the template is $camel. Continue with step 2:"
echo
sed -n '/^## Adding a route$/,/^## Tests$/{/^ *[0-9]*\. /p;/^   [^ ]/p}' CONTRIBUTING.md

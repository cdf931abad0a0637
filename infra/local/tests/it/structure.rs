//! Rules of the architecture, checked in the sources: which modules and crates may use which, and
//! what a function's folder contains.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use karta_local::{template::TEMPLATE, variables};
use regex::Regex;
use serde_json::Value;

/// The modules of `shared`, and the modules that each may use. Add a new module here first.
const ARROWS: [(&str, &[&str]); 21] = [
    ("app", &["auth", "clock", "config", "domain", "entropy", "store", "telemetry"]),
    ("auth", &["app", "clock", "config", "domain", "store", "telemetry"]),
    ("byok", &["domain", "sealing", "store"]),
    ("clock", &["domain"]),
    ("config", &["clock", "domain", "fault", "store"]),
    ("domain", &[]),
    ("entropy", &["domain"]),
    ("fault", &[]),
    ("follow", &["app", "auth", "config", "domain", "http", "store", "transcripts", "turn_events"]),
    ("bootstrap", &["app", "auth", "config", "domain", "store"]),
    (
        "http",
        &[
            "app",
            "auth",
            "byok",
            "clock",
            "config",
            "domain",
            "entropy",
            "sealing",
            "store",
            "telemetry",
            "transcripts",
            "turn_events",
            "webhook_secrets",
        ],
    ),
    ("reseal", &["app", "config", "domain", "store", "worker"]),
    ("sealing", &[]),
    ("settlement", &["app", "config", "domain", "store", "transcripts", "turn_events"]),
    ("store", &["domain", "fault"]),
    ("telemetry", &["domain"]),
    ("join_bounded", &[]),
    ("transcripts", &["domain", "sealing", "store"]),
    ("turn_events", &["domain"]),
    ("webhook_secrets", &["domain", "sealing", "store"]),
    ("worker", &["app", "config", "domain", "store", "telemetry"]),
];
/// Crates, and the only modules of `shared` that may name them.
const RESTRICTED: [(&str, &[&str]); 7] = [
    ("aws_sdk_", &["app", "config", "fault", "store"]),
    ("aws_config", &["app", "config"]),
    ("aws_types", &["config"]),
    ("serde_dynamo", &["store"]),
    ("aws_lambda_events", &["http"]),
    ("lambda_http", &["http"]),
    ("lambda_runtime", &["http", "worker"]),
];
/// Names that `domain` may not use, because it has no I/O.
const DOMAIN_FORBIDDEN: [&str; 8] =
    ["serde_json", "tokio", "tracing", "http", "std::env", "std::fs", "std::process", "std::time::SystemTime"];
/// The crates that every function may depend on.
const FUNCTION_DEPENDENCIES: [&str; 10] = [
    "aws_lambda_events",
    "http",
    "karta-shared",
    "lambda_http",
    "lambda_runtime",
    "serde",
    "serde_json",
    "tokio",
    "tracing",
    "utoipa",
];

/// Further crates that only the named function may depend on.
const EXTRA_DEPENDENCIES: [(&str, &[&str]); 5] = [
    // All other functions call only the store and Secrets Manager. `turns` calls model providers.
    // `worker-cache-push` flushes API Gateway's cache and calls data planes.
    // `worker-secrets-rotation` writes secrets. `worker-webhook-deliveries` calls webhook endpoints,
    // and `worker-webhook-events` invokes it.
    ("turns", &["karta-dialects", "karta-outbound", "reqwest", "secrecy"]),
    (
        "worker-cache-push",
        &["aws-sdk-apigateway", "aws-smithy-http-client", "aws-smithy-runtime-api", "aws-smithy-types"],
    ),
    ("worker-secrets-rotation", &["aws-sdk-secretsmanager"]),
    ("worker-webhook-deliveries", &["karta-outbound", "reqwest"]),
    ("worker-webhook-events", &["aws-sdk-lambda"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Returns every Rust file under a folder: its path from the root, and its text.
fn sources(folder: &str) -> Vec<(String, String)> {
    files(folder, &["rs"])
}

/// Returns every file under a folder that has one of these extensions.
fn files(folder: &str, extensions: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join(folder)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let path = format!("{folder}/{name}");
        if entry.file_type().unwrap().is_dir() {
            if name != "node_modules" {
                found.extend(files(&path, extensions));
            }
        } else if Path::new(&path).extension().is_some_and(|found| extensions.iter().any(|known| found == *known)) {
            found.push((path.clone(), read(&path)));
        }
    }
    found
}

fn folders(of: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(root().join(of)).unwrap().map(Result::unwrap);
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

/// Returns the source without comments and test modules.
fn production(text: &str) -> String {
    let mut lines = text.lines();
    let mut kept = String::new();
    while let Some(line) = lines.next() {
        if line == "#[cfg(test)]" {
            lines.find(|line| *line == "}" || (!line.starts_with(' ') && line.ends_with(';')));
        } else if !line.trim_start().starts_with("//") {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// Returns every path that the source imports or writes out.
fn paths(text: &str) -> BTreeSet<String> {
    let text = production(text);
    let mut found = BTreeSet::new();
    let imports = Regex::new(r"(?m)^\s*(?:pub(?:\([a-z]+\))? )?use ([^;]+);").unwrap();
    for import in imports.captures_iter(&text) {
        expand("", &import[1], &mut found);
    }
    let written = Regex::new(r"[A-Za-z_][A-Za-z0-9_]*(?:::[A-Za-z_][A-Za-z0-9_]*)+").unwrap();
    found.extend(written.find_iter(&imports.replace_all(&text, "")).map(|path| path.as_str().to_owned()));
    found
}

/// Expands `a::{b, c::{d, e}}` to `a::b`, `a::c::d`, `a::c::e`.
fn expand(before: &str, tree: &str, found: &mut BTreeSet<String>) {
    let tree = tree.trim();
    let Some((head, rest)) = tree.split_once('{') else {
        let name = tree.split(" as ").next().unwrap_or(tree);
        if !name.is_empty() {
            found.insert(format!("{before}{name}"));
        }
        return;
    };
    let (mut depth, mut start) = (0, 0);
    let rest = rest.strip_suffix('}').unwrap_or(rest);
    for (at, character) in rest.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                expand(&format!("{before}{head}"), &rest[start..at], found);
                start = at + 1;
            }
            _ => {}
        }
    }
    expand(&format!("{before}{head}"), &rest[start..], found);
}

/// Returns the module of `shared` that a file belongs to.
fn module(path: &str) -> &str {
    let inside = path.strip_prefix("shared/src/").unwrap();
    inside.split('/').next().unwrap().trim_end_matches(".rs")
}

/// Returns the other modules of `shared` that a file uses.
fn uses(path: &str, text: &str) -> BTreeSet<String> {
    // `super` is the crate in a module's root file, and the module in its other files.
    let top = path.matches('/').count() == 2 || path.ends_with("/mod.rs");
    let up = if top { "super::" } else { "super::super::" };
    let from_the_crate = paths(text).into_iter().filter_map(|path| {
        let inside = path.strip_prefix("crate::").or_else(|| path.strip_prefix(up))?;
        // A re-export has its module's name in another case: `App`.
        Some(inside.split("::").next()?.to_ascii_lowercase())
    });
    from_the_crate.filter(|used| used != module(path)).collect()
}

/// Returns the rules that a file of `shared` breaks.
fn violations(path: &str, text: &str) -> Vec<String> {
    let of = module(path);
    let Some((_, allowed)) = ARROWS.iter().find(|(module, _)| *module == of) else {
        return vec![format!("{path}: the module {of} has no line in ARROWS")];
    };
    let used = uses(path, text).into_iter().filter(|used| !allowed.contains(&used.as_str()));
    let mut found: Vec<_> = used.map(|used| format!("{path} uses {used}")).collect();
    for name in paths(text) {
        let starts = |start: &str| {
            let rest = name.strip_prefix(start);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::") || start.ends_with('_'))
        };
        let restricted = RESTRICTED.iter().any(|(start, inside)| starts(start) && !inside.contains(&of));
        let forbidden = of == "domain" && DOMAIN_FORBIDDEN.iter().any(|start| starts(start));
        if restricted || forbidden {
            found.push(format!("{path} names {name}"));
        }
    }
    found
}

/// Returns the names in a manifest's dependency tables.
fn dependencies(manifest: &str) -> BTreeSet<&str> {
    let mut inside = false;
    let mut names = BTreeSet::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.ends_with("dependencies]");
        } else if let Some(end) = line.find(['.', ' ', '=']).filter(|_| inside) {
            names.insert(&line[..end]);
        }
    }
    names
}

fn camel_case(folder: &str) -> String {
    folder.split('-').flat_map(|word| [word[..1].to_ascii_uppercase(), word[1..].to_owned()]).collect()
}

#[test]
fn check_finds_every_violation() {
    for (path, text, expected) in [
        ("shared/src/domain/id.rs", "use crate::store::Store;", "uses store"),
        ("shared/src/domain/id.rs", "fn f() { crate::telemetry::scrub(x) }", "uses telemetry"),
        ("shared/src/domain/mod.rs", "pub use super::http::Error;", "uses http"),
        ("shared/src/domain/id.rs", "use super::super::auth;", "uses auth"),
        ("shared/src/domain/id.rs", "use crate::{\n    config::{Ring, Secrets},\n};", "uses config"),
        ("shared/src/domain/id.rs", "    use crate::App as Everything;", "uses app"),
        ("shared/src/domain/id.rs", "use serde_json::{Value, json};", "names serde_json::Value"),
        ("shared/src/domain/id.rs", "use std::{fmt, fs::{self, File}};", "names std::fs::File"),
        ("shared/src/store/page.rs", "use crate::auth::Validator;", "uses auth"),
        ("shared/src/auth/mod.rs", "use crate::http::Error;", "uses http"),
        ("shared/src/auth/validator.rs", "use aws_sdk_dynamodb::Client;", "names aws_sdk_dynamodb::Client"),
        ("shared/src/http/serve.rs", "let x: aws_config::SdkConfig;", "names aws_config::SdkConfig"),
        ("shared/src/store/mod.rs", "use lambda_http::Request;", "names lambda_http::Request"),
        ("shared/src/utils.rs", "", "has no line in ARROWS"),
    ] {
        let found = violations(path, text);
        assert!(found.iter().any(|violation| violation.contains(expected)), "{path}, {text}: {found:?}");
    }
    for (path, text) in [
        ("shared/src/domain/id.rs", "use super::{Entropy, Invalid};\nuse crate::domain::Id;\nuse std::fmt;"),
        ("shared/src/domain/id.rs", "/// Not [`crate::store`].\n// use crate::store::Store;"),
        (
            "shared/src/domain/id.rs",
            "#[cfg(test)]\nmod tests {\n    use crate::entropy::X;\n    use serde_json::json;\n}\n",
        ),
        ("shared/src/auth/mod.rs", "use crate::{app::App, config::Ring, domain::Id, store::StoreError};"),
    ] {
        assert_eq!(violations(path, text), Vec::<String>::new(), "{text}");
    }
    let manifest = "[package]\nname = \"x\"\n[dependencies]\na.workspace = true\nb = \"1\"\n[dev-dependencies]\nc={}\n[lints]\nd = 1";
    assert_eq!(dependencies(manifest), BTreeSet::from(["a", "b", "c"]));
}

#[test]
fn shared_modules_use_only_allowed_modules() {
    let sources = sources("shared/src");
    let modules = sources.iter().filter(|(path, _)| path != "shared/src/lib.rs");
    let found: Vec<_> = modules.flat_map(|(path, text)| violations(path, text)).collect();
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn scan_finds_actual_modules_and_uses() {
    let text = read("shared/src/auth/validator.rs");
    let used = uses("shared/src/auth/validator.rs", &text);
    assert_eq!(
        used.iter().map(String::as_str).collect::<Vec<_>>(),
        ["app", "clock", "config", "domain", "store", "telemetry"]
    );
    let modules: BTreeSet<_> = sources("shared/src").iter().map(|(path, _)| module(path).to_owned()).collect();
    let drawn = ARROWS.iter().map(|(module, _)| (*module).to_owned()).chain(["lib".to_owned()]);
    assert_eq!(modules, drawn.collect());
}

#[test]
fn functions_have_only_allowed_dependencies() {
    for folder in folders("functions") {
        let manifest = read(&format!("functions/{folder}/Cargo.toml"));
        let own = EXTRA_DEPENDENCIES.iter().find(|(name, _)| *name == folder).map_or(&[][..], |(_, own)| own);
        let allowed = |name: &&str| FUNCTION_DEPENDENCIES.contains(name) || own.contains(name);
        let others: Vec<_> = dependencies(&manifest).into_iter().filter(|name| !allowed(name)).collect();
        assert!(others.is_empty(), "{folder} depends on {others:?}");
    }
}

#[test]
fn only_the_local_runner_links_the_emulator() {
    let emulator = "dynoxide-rs";
    assert!(dependencies(&read("infra/local/Cargo.toml")).contains(emulator));
    let deployed = folders("functions").into_iter().map(|folder| format!("functions/{folder}/Cargo.toml"));
    for manifest in deployed.chain(["shared/Cargo.toml".to_owned()]) {
        let text = read(&manifest);
        assert!(!dependencies(&text).contains(emulator) && !dependencies(&text).contains("karta-local"), "{manifest}");
    }
    // Everything that is built for Lambda, including transitive dependencies.
    let tree = ["tree", "--locked", "--offline", "--workspace", "--exclude", "karta-local", "--edges", "normal,build"];
    let tree = Command::new(env!("CARGO")).args(tree).args(["--prefix", "none"]).current_dir(root()).output().unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).unwrap();
    let linked: BTreeSet<_> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(
        linked.contains("aws-sdk-dynamodb")
            && linked.is_superset(&folders("functions").iter().map(|name| &**name).collect())
    );
    let stores: Vec<_> = linked.iter().filter(|name| name.contains("dynoxide") || name.contains("sqlite")).collect();
    assert!(stores.is_empty(), "{stores:?}");
    let naming = sources("infra/local/src").into_iter().filter(|(_, text)| {
        paths(text).iter().any(|path| path.starts_with("aws_sdk_") || path.starts_with("aws_config"))
    });
    assert_eq!(
        naming.map(|(path, _)| path).collect::<Vec<_>>(),
        Vec::<String>::new(),
        "the local runner uses the SDK only through the store"
    );
}

#[test]
fn function_has_one_name_everywhere() {
    let document: Value = serde_saphyr::from_str(TEMPLATE).unwrap();
    let resources = document["Resources"].as_object().unwrap();
    let functions = resources.iter().filter(|(_, resource)| resource["Type"] == "AWS::Serverless::Function");
    let built = functions.map(|(id, resource)| {
        let binary = resource["Metadata"]["BuildProperties"]["Binary"].as_str().unwrap();
        assert_eq!(resource["Properties"]["CodeUri"], format!("functions/{binary}"), "{id}");
        (id.clone(), binary.to_owned())
    });
    let named = folders("functions").into_iter().map(|folder| (camel_case(&folder), folder));
    assert_eq!(built.collect::<BTreeMap<_, _>>(), named.collect::<BTreeMap<_, _>>());

    let name = Regex::new(r#"(?m)^name = "(.+)"$"#).unwrap();
    let route = Regex::new(r#"const NAME: &(?:'static )?str = "(.+)";"#).unwrap();
    for folder in folders("functions") {
        let manifest = read(&format!("functions/{folder}/Cargo.toml"));
        let (package, binary) = manifest.split_once("[[bin]]").unwrap();
        let library = read(&format!("functions/{folder}/src/lib.rs"));
        for (names, text) in [(&name, package), (&name, binary), (&route, &*library)] {
            let found: Vec<_> = names.captures_iter(text).map(|found| found[1].to_owned()).collect();
            assert_eq!(found, [&*folder], "{folder}");
        }
    }
}

/// The runner warns about a variable that it does not know.
#[test]
fn every_variable_in_docs_and_sources_is_known() {
    let mut texts = [files("docs", &["md"]), files("infra", &["mjs", "rs", "sh"]), sources("functions")].concat();
    texts.extend(sources("shared"));
    texts.extend(files("sdk/shared/src", &["ts"]));
    for client in ["sdk/typescript", "sdk/sessions"] {
        texts.extend(files(&format!("{client}/src"), &["ts"]));
        texts.push((client.to_owned(), read(&format!("{client}/README.md"))));
    }
    let others = ["README.md", "CONTRIBUTING.md", "justfile", "template.yaml"];
    texts.extend(others.map(|path| (path.to_owned(), read(path))));
    let name = Regex::new("KARTA_[A-Z0-9_]+").unwrap();
    let known = variables::known();
    let mut used = BTreeSet::new();
    for (path, text) in &texts {
        // A name that ends in `_` is a prefix.
        for name in name.find_iter(text).map(|found| found.as_str()).filter(|name| !name.ends_with('_')) {
            assert!(known.contains(name), "{path} uses {name}, which infra/local/src/variables.rs does not know");
            used.insert(name.to_owned());
        }
    }
    assert_eq!(used, known, "every known variable is used");
}

#[test]
fn function_files_stay_small() {
    for folder in folders("functions") {
        for (file, limit) in [("main.rs", 10), ("lib.rs", 120)] {
            let source = read(&format!("functions/{folder}/src/{file}"));
            let lines = source.lines().filter(|line| !line.trim_start().starts_with("//")).count();
            assert!(lines <= limit, "functions/{folder}/src/{file} has {lines} lines of code, the limit is {limit}");
        }
    }
}

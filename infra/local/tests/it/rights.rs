//! Least privilege: compares the policies of `template.yaml` with the AWS calls of the functions,
//! and renders the policies as `docs/permissions.md`.
//!
//! A test in `template.rs` calls every route and worker. It then checks that every call has a
//! permission and that every permission has a call. `just check-rights` repeats the check with the
//! calls of the whole suite, including faults, races and direct runs of workers.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    path::Path,
};

use serde_json::Value;

use crate::{
    calls::Call,
    harness::run_folder,
    template::{LEADING_KEYS, TABLES, functions, resources, statements, words},
};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/permissions.md");

/// A statement of a function's policy. Its resources have the names that recorded calls use.
#[derive(Debug)]
struct Statement {
    function: String,
    actions: Vec<String>,
    resources: Vec<String>,
    /// Patterns of partition keys. Empty unless the resources are tables.
    keys: Vec<String>,
}

/// A single permission: one action of one function on one resource and partition pattern.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Permission {
    function: String,
    action: String,
    resource: String,
    key: Option<String>,
}

impl Statement {
    fn new(function: &str, statement: &Value, secrets: &BTreeMap<String, Value>) -> Self {
        let owned = |words: Vec<&str>| words.into_iter().map(str::to_owned).collect();
        let keys = &statement["Condition"]["ForAllValues:StringLike"][LEADING_KEYS];
        Self {
            function: function.to_owned(),
            actions: owned(words(&statement["Action"])),
            resources: words(&statement["Resource"])
                .into_iter()
                .map(|resource| recorded_name(resource, secrets))
                .collect(),
            keys: if keys.is_null() { Vec::new() } else { owned(words(keys)) },
        }
    }

    /// Returns whether this statement allows the call. As in IAM, one statement must allow all of
    /// it.
    fn allows(&self, call: &Call) -> bool {
        self.function == call.function
            && self.actions.contains(&call.action)
            && self.resources.iter().any(|resource| is_like(resource, &call.resource))
            && self.keys.is_empty() == call.keys.is_empty()
            && call.keys.iter().all(|key| self.keys.iter().any(|pattern| is_like(pattern, key)))
    }

    fn permissions(&self) -> impl Iterator<Item = Permission> {
        let keys: Vec<_> =
            if self.keys.is_empty() { vec![None] } else { self.keys.iter().cloned().map(Some).collect() };
        let pairs =
            self.actions.iter().flat_map(|action| self.resources.iter().map(move |resource| (action, resource)));
        pairs.flat_map(move |(action, resource)| {
            keys.clone().into_iter().map(move |key| Permission {
                function: self.function.clone(),
                action: action.clone(),
                resource: resource.clone(),
                key,
            })
        })
    }
}

impl Permission {
    /// Returns whether only tests with a fake service use the permission, and no `TestServer`
    /// does.
    pub(crate) fn needs_fake_service(&self) -> bool {
        let actions = ["apigateway:DELETE", "lambda:InvokeFunction"];
        actions.contains(&self.action.as_str()) || self.function == worker_secrets_rotation::NAME
    }

    fn is_used_by(&self, call: &Call) -> bool {
        let matches = |pattern: &String| call.keys.iter().any(|key| is_like(pattern, key));
        (&self.function, &self.action) == (&call.function, &call.action)
            && is_like(&self.resource, &call.resource)
            && self.key.as_ref().is_none_or(matches)
    }

    /// Returns `R` for reads, `W` for writes and `C` for condition checks.
    fn letter(&self) -> char {
        match self.action.as_str() {
            "dynamodb:BatchGetItem"
            | "dynamodb:GetItem"
            | "dynamodb:Query"
            | "secretsmanager:DescribeSecret"
            | "secretsmanager:GetSecretValue" => 'R',
            "dynamodb:BatchWriteItem"
            | "dynamodb:DeleteItem"
            | "dynamodb:PutItem"
            | "dynamodb:UpdateItem"
            | "secretsmanager:PutSecretValue"
            | "secretsmanager:UpdateSecretVersionStage" => 'W',
            "dynamodb:ConditionCheckItem" => 'C',
            other => panic!("no letter for {other}"),
        }
    }
}

/// Translates a resource of the template to the name that recorded calls use.
fn recorded_name(resource: &str, secrets: &BTreeMap<String, Value>) -> String {
    if let Some((table, _)) = TABLES.iter().find(|(_, word)| *word == resource) {
        return (*table).to_owned();
    }
    if let Some(secret) = secrets.get(resource) {
        let name = secret["Properties"]["Name"].as_str().unwrap();
        return name.rsplit('/').next().unwrap().to_owned();
    }
    // Another function, or an ARN that contains names of the stack.
    let mut pieces = resource.strip_suffix(".Arn").unwrap_or(resource).split("${");
    let mut pattern = pieces.next().unwrap().to_owned();
    for piece in pieces {
        write!(pattern, "*{}", piece.split_once('}').unwrap().1).unwrap();
    }
    pattern
}

/// Matches like IAM's `StringLike`, but supports only `*`.
fn is_like(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|left| {
            left.char_indices().map(|(at, _)| at).chain([left.len()]).any(|at| is_like(rest, &left[at..]))
        }),
    }
}

fn policies() -> Vec<Statement> {
    let secrets = resources("AWS::SecretsManager::Secret");
    let mut policies = Vec::new();
    for (name, function) in functions() {
        policies.extend(statements(&function).into_iter().map(|statement| Statement::new(&name, statement, &secrets)));
    }
    policies
}

/// Returns the calls that no policy allows.
pub(crate) fn unpermitted(calls: &BTreeSet<Call>) -> Vec<&Call> {
    unpermitted_by(&policies(), calls)
}

fn unpermitted_by<'a>(policies: &[Statement], calls: &'a BTreeSet<Call>) -> Vec<&'a Call> {
    calls.iter().filter(|call| !policies.iter().any(|statement| statement.allows(call))).collect()
}

/// Returns the permissions that no call used.
pub(crate) fn unused(calls: &BTreeSet<Call>) -> Vec<Permission> {
    unused_of(&policies(), calls)
}

fn unused_of(policies: &[Statement], calls: &BTreeSet<Call>) -> Vec<Permission> {
    let permissions = policies.iter().flat_map(Statement::permissions);
    permissions.filter(|permission| !calls.iter().any(|call| permission.is_used_by(call))).collect()
}

/// Renders `docs/permissions.md`.
fn page() -> String {
    let permissions: BTreeSet<_> = policies().iter().flat_map(Statement::permissions).collect();
    let mut page = "# Permissions\n\n\
        `template.yaml` gives each function a role of the same name. This page lists what each role may do.\n\
        `just permissions` generates it, and a test compares it with the template. `just check-rights`\n\
        compares the template with the AWS calls of the whole test suite, in both directions.\n\n\
        `R` reads, `W` writes, and `C` makes a transaction depend on an item. Each column is a prefix of\n\
        partition keys; `shared/src/store/table.rs` describes the items. No role may Scan. SAM also gives\n\
        every role its logs and traces, and it gives the outbox stream to the functions that the stream\n\
        invokes. The [threat model](threat-model.md#what-remains) describes what a role that may write\n\
        could read in the responses to its writes.\n"
        .to_owned();
    for (table, _) in TABLES {
        let granted = permissions.iter().filter(|permission| permission.resource == table);
        let granted: Vec<_> = granted.map(|granted| (granted, granted.key.clone().unwrap())).collect();
        matrix(&mut page, &format!("`{table}`"), &granted);
    }
    let secrets = permissions.iter().filter(|permission| permission.action.starts_with("secretsmanager:"));
    let granted: Vec<_> = secrets.map(|granted| (granted, granted.resource.clone())).collect();
    matrix(&mut page, "Secrets", &granted);
    page.push_str("\n## Other services\n\n| function | action | resource |\n| --- | --- | --- |\n");
    for permission in &permissions {
        let Permission { function, action, resource, .. } = permission;
        if !action.starts_with("dynamodb:") && !action.starts_with("secretsmanager:") {
            writeln!(page, "| {function} | `{action}` | `{resource}` |").unwrap();
        }
    }
    let holders: BTreeSet<_> = permissions.iter().map(|permission| &permission.function).collect();
    let without: Vec<_> = functions().into_keys().filter(|function| !holders.contains(function)).collect();
    write!(page, "\n## No permissions\n\n{}\n", without.join(", ")).unwrap();
    page
}

/// Renders a table with a row for each function and a column for each key prefix or secret.
fn matrix(page: &mut String, title: &str, granted: &[(&Permission, String)]) {
    let columns: BTreeSet<_> = granted.iter().map(|(_, column)| column).collect();
    let mut rows = BTreeMap::<_, BTreeMap<_, BTreeSet<_>>>::new();
    for (permission, column) in granted {
        rows.entry(&permission.function).or_default().entry(column).or_default().insert(permission.letter());
    }
    write!(page, "\n## {title}\n\n| function |").unwrap();
    for column in &columns {
        write!(page, " {} |", column.trim_end_matches("#*")).unwrap();
    }
    write!(page, "\n| --- |{}\n", " --- |".repeat(columns.len())).unwrap();
    for (function, cells) in rows {
        write!(page, "| {function} |").unwrap();
        for column in &columns {
            let letters: String =
                "RWC".chars().filter(|letter| cells.get(column).is_some_and(|of| of.contains(letter))).collect();
            write!(page, " {letters} |").unwrap();
        }
        page.push('\n');
    }
}

#[test]
fn permissions_page_is_up_to_date() {
    let page = page();
    if env::var_os("KARTA_UPDATE").is_some() {
        fs::write(Path::new(PAGE), &page).unwrap();
    }
    assert!(fs::read_to_string(PAGE).unwrap() == page, "docs/permissions.md is not up to date: just permissions");
}

#[test]
fn check_finds_unpermitted_calls_and_unused_permissions() {
    let strings = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let statement = |action: &str, resource: &str, keys: &[&str]| Statement {
        function: "f".to_owned(),
        actions: strings(&[action]),
        resources: strings(&[resource]),
        keys: strings(keys),
    };
    let call = |function: &str, action: &str, resource: &str, keys: &[&str]| Call {
        function: function.to_owned(),
        action: action.to_owned(),
        resource: resource.to_owned(),
        keys: strings(keys).into_iter().collect(),
    };
    let policies = [
        statement("dynamodb:Query", "karta", &["KEY#*", "MK#*"]),
        statement("dynamodb:Query", "karta", &["ORG#*"]),
        statement("secretsmanager:GetSecretValue", "cursor", &[]),
        statement("apigateway:DELETE", "arn:*::/stages/*/cache", &[]),
    ];
    let allowed = BTreeSet::from([
        call("f", "dynamodb:Query", "karta", &["KEY#*", "MK#*"]),
        call("f", "dynamodb:Query", "karta", &["ORG#*"]),
        call("f", "secretsmanager:GetSecretValue", "cursor", &[]),
        call("f", "apigateway:DELETE", "arn:aws::/stages/prod/cache", &[]),
    ]);
    assert_eq!(unpermitted_by(&policies, &allowed), Vec::<&Call>::new());
    assert_eq!(unused_of(&policies, &allowed), []);
    for unpermitted in [
        call("g", "dynamodb:Query", "karta", &["KEY#*"]),
        call("f", "dynamodb:GetItem", "karta", &["KEY#*"]),
        call("f", "dynamodb:Query", "karta/index/due", &["KEY#*"]),
        call("f", "dynamodb:Query", "karta", &["MKS#*"]),
        call("f", "dynamodb:Query", "karta", &["KEY#*", "ORG#*"]),
        call("f", "dynamodb:Query", "karta", &[]),
        call("f", "dynamodb:?", "?", &["?"]),
        call("f", "secretsmanager:GetSecretValue", "audit", &[]),
        call("f", "apigateway:DELETE", "arn:aws::/stages/prod/cache/data", &[]),
    ] {
        assert_eq!(unpermitted_by(&policies, &BTreeSet::from([unpermitted.clone()])), [&unpermitted]);
    }
    for used in &allowed {
        let others: BTreeSet<_> = allowed.iter().filter(|call| *call != used).cloned().collect();
        assert_eq!(unused_of(&policies, &others).len(), used.keys.len().max(1), "{used:?}");
    }
}

#[test]
#[ignore = "needs the recorded calls of a run of the whole suite: just check-rights"]
fn suite_uses_exactly_the_granted_permissions() {
    let folder = run_folder("calls");
    let files =
        fs::read_dir(&folder).unwrap_or_else(|_| panic!("no files in {}: run the tests first", folder.display()));
    let files = files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap());
    let calls: BTreeSet<Call> = files
        .flat_map(|text| text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<_>>())
        .collect();
    let (unpermitted, unused) = (unpermitted(&calls), unused(&calls));
    assert!(unpermitted.is_empty(), "calls without a permission: {unpermitted:#?}");
    assert!(unused.is_empty(), "unused permissions: {unused:#?}");
    let functions: BTreeSet<_> = calls.iter().map(|call| &call.function).collect();
    let permissions = policies().iter().flat_map(Statement::permissions).count();
    let mut out = io::stdout().lock();
    write!(
        out,
        "{}\n{permissions} permissions, all used; {} kinds of calls of {} functions, all permitted\n",
        page(),
        calls.len(),
        functions.len()
    )
    .unwrap();
}

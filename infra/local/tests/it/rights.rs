//! Least privilege: the policies of `template.yaml` held against what the functions did, and shown as a page.
//!
//! A walk over every route and worker ends with both questions: was anything done without a permission, and is anything permitted that nobody does?
//! `just check-rights` asks them again of every call of the whole suite, faults, races and direct runs of workers included.

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

/// A statement of a function's policy, its resources named as calls name them.
#[derive(Debug)]
struct Statement {
    function: String,
    actions: Vec<String>,
    resources: Vec<String>,
    /// Which partitions; none but for tables.
    keys: Vec<String>,
}

/// One of the things that a statement allows.
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
            resources: words(&statement["Resource"]).into_iter().map(|resource| called(resource, secrets)).collect(),
            keys: if keys.is_null() { Vec::new() } else { owned(words(keys)) },
        }
    }

    /// As IAM judges: one statement must bear all of it.
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
    /// Whether it is used where a test has a stand-in for the service, and not in a server.
    pub(crate) fn is_elsewhere(&self) -> bool {
        let actions = ["apigateway:DELETE", "lambda:InvokeFunction"];
        actions.contains(&self.action.as_str()) || self.function == worker_secrets_rotation::NAME
    }

    fn is_used_by(&self, call: &Call) -> bool {
        let is_meant = |key: &String| call.keys.iter().any(|called| is_like(key, called));
        (&self.function, &self.action) == (&call.function, &call.action)
            && is_like(&self.resource, &call.resource)
            && self.key.as_ref().is_none_or(is_meant)
    }

    /// `R` reads, `W` writes, `C` makes sure of an item without reading it.
    fn letter(&self) -> char {
        match self.action.as_str() {
            "dynamodb:BatchGetItem"
            | "dynamodb:GetItem"
            | "dynamodb:Query"
            | "secretsmanager:DescribeSecret"
            | "secretsmanager:GetSecretValue" => 'R',
            "dynamodb:DeleteItem"
            | "dynamodb:PutItem"
            | "dynamodb:UpdateItem"
            | "secretsmanager:PutSecretValue"
            | "secretsmanager:UpdateSecretVersionStage" => 'W',
            "dynamodb:ConditionCheckItem" => 'C',
            other => panic!("no letter for {other}"),
        }
    }
}

/// The template's word for a resource, as a call has it.
fn called(resource: &str, secrets: &BTreeMap<String, Value>) -> String {
    if let Some((table, _)) = TABLES.iter().find(|(_, word)| *word == resource) {
        return (*table).to_owned();
    }
    if let Some(secret) = secrets.get(resource) {
        let name = secret["Properties"]["Name"].as_str().unwrap();
        return name.rsplit('/').next().unwrap().to_owned();
    }
    // Another function, or an ARN with the stack's own names in it.
    let mut pieces = resource.strip_suffix(".Arn").unwrap_or(resource).split("${");
    let mut pattern = pieces.next().unwrap().to_owned();
    for piece in pieces {
        write!(pattern, "*{}", piece.split_once('}').unwrap().1).unwrap();
    }
    pattern
}

/// IAM's `StringLike`, as far as `*` goes.
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

/// What was done without a permission.
pub(crate) fn excess(calls: &BTreeSet<Call>) -> Vec<&Call> {
    excess_of(&policies(), calls)
}

fn excess_of<'a>(policies: &[Statement], calls: &'a BTreeSet<Call>) -> Vec<&'a Call> {
    calls.iter().filter(|call| !policies.iter().any(|statement| statement.allows(call))).collect()
}

/// What is permitted and was not done.
pub(crate) fn idle(calls: &BTreeSet<Call>) -> Vec<Permission> {
    idle_of(&policies(), calls)
}

fn idle_of(policies: &[Statement], calls: &BTreeSet<Call>) -> Vec<Permission> {
    let permissions = policies.iter().flat_map(Statement::permissions);
    permissions.filter(|permission| !calls.iter().any(|call| permission.is_used_by(call))).collect()
}

/// Who may do what to which partitions, and read which secrets.
fn page() -> String {
    let permissions: BTreeSet<_> = policies().iter().flat_map(Statement::permissions).collect();
    let mut page = "# Permissions\n\n\
        What each function's role may do, as `template.yaml` has it: one role for each function, named like it. This page is generated \
        (`just permissions`) and a test holds it to the template; `just check-rights` holds the template to the calls of the whole test suite, both ways.\n\n\
        `R` reads, `W` writes, `C` makes a transaction depend on an item. A column is the beginning of a partition key; `shared/src/store/table.rs` \
        says what lies there. Nobody may Scan. Beside this SAM gives every role its logs and traces, and those that the outbox wakes its stream. What a role that \
        writes could have returned to it is told in the [threat model](threat-model.md#what-remains).\n"
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
    let bare: Vec<_> = functions().into_keys().filter(|function| !holders.contains(function)).collect();
    write!(page, "\n## Nothing at all\n\n{}\n", bare.join(", ")).unwrap();
    page
}

/// A row for each function, a column for each kind of thing.
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
            // Reading comes first.
            let letters: String =
                "RWC".chars().filter(|letter| cells.get(column).is_some_and(|of| of.contains(letter))).collect();
            write!(page, " {letters} |").unwrap();
        }
        page.push('\n');
    }
}

#[test]
fn the_page_of_permissions_is_the_templates() {
    let page = page();
    if env::var_os("KARTA_UPDATE").is_some() {
        fs::write(Path::new(PAGE), &page).unwrap();
    }
    assert!(fs::read_to_string(PAGE).unwrap() == page, "docs/permissions.md is not up to date: just permissions");
}

#[test]
fn what_no_single_statement_allows_is_found_and_so_is_what_nobody_uses() {
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
    assert_eq!(excess_of(&policies, &allowed), Vec::<&Call>::new());
    assert_eq!(idle_of(&policies, &allowed), []);
    for beyond in [
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
        assert_eq!(excess_of(&policies, &BTreeSet::from([beyond.clone()])), [&beyond]);
    }
    for used in &allowed {
        let others: BTreeSet<_> = allowed.iter().filter(|call| *call != used).cloned().collect();
        assert_eq!(idle_of(&policies, &others).len(), used.keys.len().max(1), "{used:?}");
    }
}

#[test]
#[ignore = "judges what a run of the whole suite has left: just check-rights"]
fn the_whole_suite_did_what_the_policies_allow_and_all_of_it() {
    let folder = run_folder("calls");
    let files =
        fs::read_dir(&folder).unwrap_or_else(|_| panic!("no files in {}: run the tests first", folder.display()));
    let files = files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap());
    let calls: BTreeSet<Call> = files
        .flat_map(|text| text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<_>>())
        .collect();
    let (excess, idle) = (excess(&calls), idle(&calls));
    assert!(excess.is_empty(), "done without a permission: {excess:#?}");
    assert!(idle.is_empty(), "permitted without a use: {idle:#?}");
    let functions: BTreeSet<_> = calls.iter().map(|call| &call.function).collect();
    let permissions = policies().iter().flat_map(Statement::permissions).count();
    let mut out = io::stdout().lock();
    write!(
        out,
        "{}\n{permissions} permissions, each used; {} kinds of calls of {} functions, each permitted\n",
        page(),
        calls.len(),
        functions.len()
    )
    .unwrap();
}

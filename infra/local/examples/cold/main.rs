//! How functions start: `just cold`.
//!
//! Runs every function's own release binary under a Runtime API on loopback, over a runner's embedded store and a stand-in for Secrets Manager.
//! Prints, as medians, the time from the start of the process until it asks for its first event; its first answer; a warm answer; the most memory that
//! was resident; and the size of the zipped binary. Fails on any answer but the one that is due. A run over all functions is kept in
//! `docs/performance.md`.
//!
//! Then takes away each setting that the template gives a function, and makes it wrong: every such start must fail with a log that names the setting.

mod aws;
mod events;
mod faults;
mod lambda;
mod world;

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, Write},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use karta_local::template::TEMPLATE;
use serde_json::Value;

use crate::{events::event, lambda::Lambda, world::World};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Starts of a run that is kept.
const STARTS: usize = 20;
/// How many warm answers one start is asked for.
const WARM: usize = 10;
const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/performance.md");
const BEGIN: &str = "<!-- just cold -->\n";
const END: &str = "<!-- /just cold -->\n";

#[derive(Parser)]
struct Arguments {
    /// How often each function is started and measured. With 0 each is started once, and nothing is measured.
    #[arg(long, default_value_t = STARTS)]
    starts: usize,
    /// These functions only, and nothing is kept.
    functions: Vec<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    // The example lies in target/<profile>/examples, what cargo-lambda builds in target/lambda.
    let binaries = env::current_exe()?.ancestors().nth(3).context("no target folder")?.join("lambda");
    let world = Box::pin(World::start()).await?;
    let mut rows = Vec::new();
    let mut refused = 0;
    say(HEAD)?;
    let functions = functions()?;
    for name in &arguments.functions {
        ensure!(functions.contains_key(name), "there is no function {name}");
    }
    for (name, function) in functions {
        if !arguments.functions.is_empty() && !arguments.functions.contains(&name) {
            continue;
        }
        let (binary, environment) = (binaries.join(&name).join("bootstrap"), world.environment(&function)?);
        let zipped = if arguments.starts > 0 { zipped(&binary)? } else { 0 };
        let cases = match name.as_str() {
            "authorizer" => vec!["authorizer: API key".to_owned(), "authorizer: session token".to_owned()],
            _ => vec![name.clone()],
        };
        for case in cases {
            let row = measure(&world, &case, &binary, &environment, arguments.starts, zipped).await;
            if let Some(row) = row.with_context(|| case.clone())? {
                say(&row.line())?;
                rows.push(row);
            }
        }
        // A rotation that misses a setting fails by itself, and nothing else depends on it.
        if name != "worker-secrets-rotation" {
            refused += faults::refused(&binary, &environment).await.with_context(|| name.clone())?;
        }
    }
    say(&format!("\n{refused} starts with a setting that was missing or wrong: each failed, and named it."))?;
    if arguments.functions.is_empty() && arguments.starts >= STARTS {
        keep(&rows)?;
    }
    Ok(())
}

/// The template's functions by their binaries' names. Among the variables of each are those that all get.
fn functions() -> Result<BTreeMap<String, Value>> {
    let document: Value = serde_saphyr::from_str(TEMPLATE)?;
    let shared = document["Globals"]["Function"]["Environment"]["Variables"].as_object().context("no Globals")?;
    let resources = document["Resources"].as_object().context("no Resources")?.values();
    let functions = resources.filter(|resource| resource["Type"] == "AWS::Serverless::Function").map(|function| {
        let name = function["Metadata"]["BuildProperties"]["Binary"].as_str().context("no Binary")?;
        let mut function = function.clone();
        for (variable, value) in shared {
            function["Properties"]["Environment"]["Variables"][variable] = value.clone();
        }
        Ok((name.to_owned(), function))
    });
    functions.collect()
}

/// What was measured of a function; medians.
struct Row {
    case: String,
    init: Duration,
    first: Duration,
    /// From the start of the process until the first answer.
    both: Duration,
    warm: Duration,
    /// Bytes.
    memory: u64,
    /// Bytes.
    zipped: u64,
}

const HEAD: &str = "| function | init ms | first ms | both ms | warm ms | memory MB | zipped MB |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: |";

impl Row {
    /// Of the table; what misses its goal is bold.
    fn line(&self) -> String {
        let warm_goal = if self.case == "authorizer: session token" { 0.3 } else { f64::INFINITY };
        let zipped_goal = if self.case == "worker-webhook-deliveries" { 7.0 } else { 5.0 };
        let cells = [
            cell(milliseconds(self.init), 20.0, 1),
            cell(milliseconds(self.first), f64::INFINITY, 1),
            cell(milliseconds(self.both), 35.0, 1),
            cell(milliseconds(self.warm), warm_goal, 2),
            cell(megabytes(self.memory), 25.0, 1),
            cell(megabytes(self.zipped), zipped_goal, 2),
        ];
        format!("| {} | {} |", self.case, cells.join(" | "))
    }
}

fn cell(value: f64, goal: f64, digits: usize) -> String {
    if value > goal { format!("**{value:.digits$}**") } else { format!("{value:.digits$}") }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

#[expect(clippy::cast_precision_loss, reason = "a size")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

async fn measure(
    world: &World,
    case: &str,
    binary: &Path,
    environment: &BTreeMap<String, String>,
    starts: usize,
    zipped: u64,
) -> Result<Option<Row>> {
    let (mut inits, mut firsts, mut boths, mut warms, mut memories) = (vec![], vec![], vec![], vec![], vec![]);
    let mut number = 0;
    // The first start brings the binary into the page cache, and is not counted.
    for start in 0..=starts {
        // Nothing else runs while the process starts.
        let mut due = event(world, case, number).await?;
        let mut lambda = Lambda::start(binary, environment).await?;
        let (mut init, mut answers) = (None, Vec::with_capacity(1 + WARM));
        loop {
            let ready = lambda.ready().await?;
            init.get_or_insert(ready.after);
            let (answer, took) = ready.invoke(&due.event).await?;
            due.judge(&answer)?;
            answers.push(took);
            number += 1;
            if answers.len() > WARM {
                break;
            }
            due = event(world, case, number).await?;
        }
        let memory = lambda.memory()?;
        if start > 0 {
            let (init, first) = (init.context("no start")?, answers[0]);
            inits.push(init);
            firsts.push(first);
            boths.push(init + first);
            warms.push(median(answers.split_off(1)));
            memories.push(memory);
        }
    }
    Ok((starts > 0).then(|| Row {
        case: case.to_owned(),
        init: median(inits),
        first: median(firsts),
        both: median(boths),
        warm: median(warms),
        memory: median(memories),
        zipped,
    }))
}

fn median<T: Ord + Copy>(mut values: Vec<T>) -> T {
    values.sort_unstable();
    values[values.len() / 2]
}

/// What Lambda is given, in bytes but for the archive's own few hundred.
fn zipped(binary: &Path) -> Result<u64> {
    let zipped = Command::new("gzip").arg("-c").arg(binary).output()?;
    ensure!(zipped.status.success(), "{} cannot be zipped: build it first", binary.display());
    Ok(zipped.stdout.len().try_into()?)
}

/// Puts the table where the last one stands.
fn keep(rows: &[Row]) -> Result<()> {
    let text = fs::read_to_string(KEPT)?;
    let (before, rest) = text.split_once(BEGIN).context("docs/performance.md has no place for the table")?;
    let (_, after) = rest.split_once(END).context("the table's end is missing")?;
    let table: String = rows.iter().map(|row| row.line() + "\n").collect();
    Ok(fs::write(KEPT, format!("{before}{BEGIN}\n{HEAD}\n{table}\n{END}{after}"))?)
}

fn say(line: &str) -> Result<()> {
    Ok(writeln!(io::stdout(), "{line}")?)
}

//! Measures cold starts: `just cold`.
//!
//! Runs the release binary of every function with a Runtime API on loopback, a runner's embedded
//! store and an emulated Secrets Manager. Prints these medians for each function:
//!
//! - the time from the start of the process until it asks for its first event
//! - the time of the first response, and of a warm response
//! - the peak resident memory
//! - the size of the zipped binary
//!
//! Fails on an unexpected response. A run over all functions replaces the table in
//! `docs/performance.md`.
//!
//! Then starts each function without each of its settings, and with an invalid value for each.
//! Every such start must fail with a log that names the setting.

mod aws;
mod events;
mod faults;
mod fixture;
mod lambda;

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

use crate::{events::event, fixture::Fixture, lambda::Lambda};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Default starts per function, and the minimum for saving the table.
const STARTS: usize = 20;
const WARM_ANSWERS: usize = 10;
const REPORT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/performance.md");
const BEGIN: &str = "<!-- just cold -->\n";
const END: &str = "<!-- /just cold -->\n";

#[derive(Parser)]
struct Arguments {
    /// Measured starts per function; 0 starts each function once without measuring.
    #[arg(long, default_value_t = STARTS)]
    starts: usize,
    /// Functions to start (default: all). The table is saved only if all functions are measured.
    functions: Vec<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    // This example is in target/<profile>/examples, and cargo-lambda builds to target/lambda.
    let binaries = env::current_exe()?.ancestors().nth(3).context("no target folder")?.join("lambda");
    let fixture = Box::pin(Fixture::start()).await?;
    let mut rows = Vec::new();
    let mut failed_starts = 0;
    print_line(HEAD)?;
    let functions = functions()?;
    for name in &arguments.functions {
        ensure!(functions.contains_key(name), "unknown function {name}");
    }
    for (name, function) in functions {
        if !arguments.functions.is_empty() && !arguments.functions.contains(&name) {
            continue;
        }
        let (binary, environment) = (binaries.join(&name).join("bootstrap"), fixture.environment(&function)?);
        let zipped = if arguments.starts > 0 { zipped(&binary)? } else { 0 };
        let cases = match name.as_str() {
            "authorizer" => vec!["authorizer: API key".to_owned(), "authorizer: session token".to_owned()],
            _ => vec![name.clone()],
        };
        for case in cases {
            let row = measure(&fixture, &case, &binary, &environment, arguments.starts, zipped).await;
            if let Some(row) = row.with_context(|| case.clone())? {
                print_line(&row.line())?;
                rows.push(row);
            }
        }
        // A rotation without a setting fails when it runs, and no other function depends on it.
        if name != "worker-secrets-rotation" {
            failed_starts += faults::check_settings(&binary, &environment).await.with_context(|| name.clone())?;
        }
    }
    print_line(&format!(
        "\n{failed_starts} starts with a missing or invalid setting: each failed and named the setting"
    ))?;
    if arguments.functions.is_empty() && arguments.starts >= STARTS {
        save(&rows)?;
    }
    Ok(())
}

/// Returns the template's functions by the names of their binaries, each with the global variables.
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

/// The medians of a function.
struct Row {
    case: String,
    init: Duration,
    first: Duration,
    /// Time from the start of the process until the first response.
    both: Duration,
    warm: Duration,
    /// Memory used, in bytes.
    memory: u64,
    /// Size of the zipped binary, in bytes.
    zipped: u64,
}

const HEAD: &str = "| function | init ms | first ms | both ms | warm ms | memory MB | zipped MB |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: |";

impl Row {
    /// Returns the table's line. Values that miss their goal are bold.
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
    fixture: &Fixture,
    case: &str,
    binary: &Path,
    environment: &BTreeMap<String, String>,
    starts: usize,
    zipped: u64,
) -> Result<Option<Row>> {
    let (mut inits, mut firsts, mut boths, mut warms, mut memories) = (vec![], vec![], vec![], vec![], vec![]);
    let mut number = 0;
    // The first start loads the binary into the page cache and is not counted.
    for start in 0..=starts {
        // Created before the start, so that nothing else runs while the process starts.
        let mut invocation = event(fixture, case, number).await?;
        let mut lambda = Lambda::start(binary, environment).await?;
        let (mut init, mut answers) = (None, Vec::with_capacity(1 + WARM_ANSWERS));
        loop {
            let ready = lambda.ready().await?;
            init.get_or_insert(ready.init_time);
            let (answer, took) = ready.invoke(&invocation.event).await?;
            invocation.check(&answer)?;
            answers.push(took);
            number += 1;
            if answers.len() > WARM_ANSWERS {
                break;
            }
            invocation = event(fixture, case, number).await?;
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

/// Returns the size of the zipped binary in bytes, without the few hundred bytes of the archive
/// format.
fn zipped(binary: &Path) -> Result<u64> {
    let zipped = Command::new("gzip").arg("-c").arg(binary).output()?;
    ensure!(zipped.status.success(), "{} cannot be zipped: build the functions first", binary.display());
    Ok(zipped.stdout.len().try_into()?)
}

fn save(rows: &[Row]) -> Result<()> {
    let text = fs::read_to_string(REPORT)?;
    let (before, rest) = text.split_once(BEGIN).context("docs/performance.md has no marker for the table")?;
    let (_, after) = rest.split_once(END).context("docs/performance.md has no marker for the end of the table")?;
    let table: String = rows.iter().map(|row| row.line() + "\n").collect();
    Ok(fs::write(REPORT, format!("{before}{BEGIN}\n{HEAD}\n{table}\n{END}{after}"))?)
}

fn print_line(line: &str) -> Result<()> {
    Ok(writeln!(io::stdout(), "{line}")?)
}

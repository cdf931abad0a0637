//! The command line of `karta`.

use std::{
    ffi::OsStr,
    io::{self, Write},
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use clap::{Arg, Args, CommandFactory, FromArgMatches, Parser, Subcommand, builder::BoolishValueParser};
use karta_shared::{
    App,
    clock::SystemClock,
    config::{self, Deadlines, TurnLimits},
    domain::{ApiKeyToken, Reach, Slug},
    entropy::OsEntropy,
    telemetry,
};
use secrecy::ExposeSecret;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    Options, Runner, audit,
    bootstrap::{self, BootstrapResult},
    openapi,
    secrets::ProvidedSecrets,
    variables::{self, UnknownVariable},
};

/// Run the whole control plane on this machine with an embedded store.
#[derive(Debug, Parser)]
#[command(name = "karta", version, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArguments,
}

impl Arguments {
    /// Parses the command line and the environment. Invalid ones end the process with a message.
    pub fn read() -> Self {
        let empty = config::empty_variables();
        let command = without_variables(Self::command(), &|variable| empty.contains(variable));
        let matches = command.get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
}

/// Returns the command without these variables of its flags and of its subcommands' flags. clap
/// itself would read an empty variable as an empty value.
fn without_variables(command: clap::Command, is_ignored: &dyn Fn(&str) -> bool) -> clap::Command {
    let without_variable = |flag: Arg| {
        let ignores = flag.get_env().and_then(OsStr::to_str).is_some_and(is_ignored);
        if ignores { flag.env(None::<&'static str>) } else { flag }
    };
    command.mut_args(without_variable).mut_subcommands(|subcommand| without_variables(subcommand, is_ignored))
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Verify every organization's audit log; fails on any finding, or if there is no organization.
    AuditVerify(VerifyArguments),
    /// Create an organization and its first API key in a deployed stack, and print the key once;
    /// fails if the organization exists.
    Bootstrap(BootstrapArguments),
    /// Print the API document built from the handlers' types: `openapi.json` without its
    /// examples.
    Openapi,
}

#[derive(Debug, Args)]
struct VerifyArguments {
    /// Directory of the data and its secrets; no runner may be using it.
    #[arg(long, env = "KARTA_DATA_DIR", default_value = ".karta")]
    data_dir: PathBuf,
    /// Verify a deployed stack instead, with the environment's AWS credentials: `KARTA_TABLE`,
    /// `KARTA_ANCHORS_TABLE` and `KARTA_SECRET_AUDIT` name its tables and its key ring.
    #[arg(long)]
    deployed: bool,
}

/// The environment must contain AWS credentials and the variables of the stack's functions
/// (`KARTA_TABLE` and the others).
#[derive(Debug, Args)]
struct BootstrapArguments {
    /// The organization's slug.
    #[arg(long, env = "KARTA_ORG", value_parser = slug)]
    org: Slug,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
struct RunArguments {
    /// Address to listen on; 0.0.0.0 also accepts connections from containers.
    #[arg(long, env = "KARTA_HOST", default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port to listen on; 0 picks a free one.
    #[arg(long, env = "KARTA_PORT", default_value_t = 8787)]
    port: u16,
    /// Directory of the data and the generated secrets.
    #[arg(long, env = "KARTA_DATA_DIR", default_value = ".karta")]
    data_dir: PathBuf,
    /// Keep data and secrets in memory only.
    #[arg(long, env = "KARTA_EPHEMERAL", value_parser = BoolishValueParser::new())]
    ephemeral: bool,
    /// Slug of the organization to use; if it does not exist, it is created with a first API key.
    #[arg(long, env = "KARTA_ORG", default_value = "acme", value_parser = slug)]
    org: Slug,
    /// Print one line of JSON about this run instead of the banner.
    #[arg(long, env = "KARTA_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
    /// Allow webhook URLs and an `endpoint_url` on loopback, which may use `http`, any port and IP addresses.
    #[arg(long, env = "KARTA_ALLOW_LOOPBACK_WEBHOOKS", value_parser = BoolishValueParser::new())]
    allow_loopback_webhooks: bool,
    /// Add a project `demo` that talks to a scripted provider in this process instead of a model.
    #[arg(long, env = "KARTA_DEMO", value_parser = BoolishValueParser::new())]
    demo: bool,
    /// bcrypt cost of new digests (default 12); 4 is fast, for tests only.
    #[arg(long, env = "KARTA_BCRYPT_COST", value_parser = clap::value_parser!(u32).range(4..=31))]
    bcrypt_cost: Option<u32>,
    /// Level of the log on standard error: off, error, warn, info, debug, trace, or tracing
    /// directives such as `karta_shared=debug,warn`.
    #[arg(long, env = "KARTA_LOG", default_value = "info", value_parser = log_filter)]
    log: String,
}

fn slug(text: &str) -> Result<Slug, String> {
    Slug::try_from(text.to_owned()).map_err(|error| error.to_string())
}

/// Rejects a word that is not a level: `tracing` would read it as the name of a target and log
/// almost nothing.
fn log_filter(text: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    if text.split(',').all(|directive| directive.contains('=') || is_level(directive.trim())) {
        return Ok(text.to_owned());
    }
    Err(format!("must be one of {}, or tracing directives such as karta_shared=debug,warn", LEVELS.join(", ")))
}

/// Executes a command line and returns the exit code.
pub async fn execute(arguments: Arguments) -> Result<ExitCode> {
    let Some(command) = arguments.command else {
        return Box::pin(run(arguments.run)).await.map(|()| ExitCode::SUCCESS);
    };
    for unknown in variables::unknown() {
        writeln!(io::stderr(), "karta: {unknown}").ok();
    }
    match command {
        Command::AuditVerify(arguments) => audit_verify(arguments).await,
        Command::Bootstrap(arguments) => create_organization(arguments).await.map(|()| ExitCode::SUCCESS),
        Command::Openapi => print_document().map(|()| ExitCode::SUCCESS),
    }
}

fn print_document() -> Result<()> {
    match write!(io::stdout(), "{}", openapi::print(&openapi::document()?)?) {
        // The reader has enough, as with `karta openapi | head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

/// Creates the organization in a deployed stack and prints its first key.
async fn create_organization(arguments: BootstrapArguments) -> Result<()> {
    let app = App::for_operator().await.map_err(anyhow::Error::from_boxed)?;
    let BootstrapResult { organization, api_key } = bootstrap::organization(&app, &arguments.org, "bootstrap").await?;
    let Some(token) = api_key else {
        bail!(
            "the organization {} already exists, and its first key is shown only once: \
             create another key with POST /v1/internal/organizations/{}/api_keys",
            organization.slug,
            organization.id
        );
    };
    let created = json!({
        "organization_id": organization.id,
        "organization_slug": organization.slug,
        "api_key": token.expose(),
    });
    writeln!(io::stdout(), "{created}")?;
    Ok(())
}

/// Prints the report. Returns failure unless all logs are intact.
async fn audit_verify(arguments: VerifyArguments) -> Result<ExitCode> {
    let report = if arguments.deployed {
        audit::verify_deployed().await?
    } else {
        audit::verify_local(&arguments.data_dir).await?
    };
    let mut out = io::stdout().lock();
    for line in report.lines() {
        writeln!(out, "{line}")?;
    }
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs until SIGINT or SIGTERM.
async fn run(arguments: RunArguments) -> Result<()> {
    telemetry::init(telemetry::Output::Stderr, &arguments.log).context("--log")?;
    for UnknownVariable { name, closest } in variables::unknown() {
        tracing::warn!(variable = name, closest, "unknown environment variable");
    }
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let given = ProvidedSecrets {
        session_token_secret: config::session_token_secret()?,
        service_tokens: config::service_tokens()?,
        data_planes: config::data_planes()?,
        stripe_secrets: config::stripe_secrets()?,
    };
    given.check()?;
    let runner = Runner::start(Options {
        host: arguments.host,
        port: arguments.port,
        data_dir: (!arguments.ephemeral).then(|| arguments.data_dir.clone()),
        organization: arguments.org,
        bcrypt_cost: arguments.bcrypt_cost,
        session_token_secret: given.session_token_secret,
        service_tokens: given.service_tokens,
        data_planes: given.data_planes,
        stripe_secrets: given.stripe_secrets,
        internal: config::internal_guard()?,
        outbound_reach: if arguments.allow_loopback_webhooks { Reach::Loopback } else { Reach::Public },
        deadlines: Deadlines::LAPTOP,
        turn_limits: TurnLimits::LAPTOP,
        provider_base_urls: None,
        demo: arguments.demo,
        workers: true,
        call_observer: None,
        clock: Arc::new(SystemClock),
        entropy: Arc::new(OsEntropy),
    })
    .await?;
    let data_dir = (!arguments.ephemeral).then_some(arguments.data_dir.as_path());
    let text = if arguments.json { json_description(&runner, data_dir) } else { banner(&runner, data_dir) };
    // The runner works with standard output closed, too.
    writeln!(io::stdout(), "{text}").ok();
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    runner.stop().await;
    Ok(())
}

/// Prints an error to standard error with secrets redacted.
pub fn print_error(error: &anyhow::Error) {
    writeln!(io::stderr(), "karta: {}", telemetry::scrub(&format!("{error:#}"))).ok();
}

fn json_description(runner: &Runner, data_dir: Option<&Path>) -> String {
    let organization = &runner.bootstrap.organization;
    json!({
        "base_url": runner.base_url,
        "organization_id": organization.id,
        "organization_slug": organization.slug,
        "api_key": runner.bootstrap.api_key.as_ref().map(ApiKeyToken::expose),
        "service_token": runner.secrets.service_token.expose_secret(),
        "session_token_secret": runner.secrets.session_token_secret.expose_secret(),
        "data_dir": data_dir,
    })
    .to_string()
}

/// Two calls to the demo's project.
const DEMO: &str = r#"
The project `demo` talks to a scripted provider in this process, not to a model:

  SESSION_ID=$(curl -s -X POST $KARTA_BASE_URL/v1/projects/demo/sessions \
    -H "Authorization: Bearer $KARTA_API_KEY" | sed 's/.*"id":"\(sess_[^"]*\)".*/\1/')
  curl -N $KARTA_BASE_URL/v1/projects/demo/sessions/$SESSION_ID/messages \
    -H "Authorization: Bearer $KARTA_API_KEY" -d '{"text": "Hello", "stream": true}'
"#;

fn banner(runner: &Runner, data_dir: Option<&Path>) -> String {
    let (url, organization) = (&runner.base_url, &runner.bootstrap.organization.slug);
    let storage = data_dir.map_or_else(
        || "Data and secrets are in memory only.".to_owned(),
        |folder| format!("Data and secrets are in {}.", folder.display()),
    );
    let demo = if runner.demo.is_some() { DEMO } else { "" };
    let Some(token) = &runner.bootstrap.api_key else {
        return format!(
            "Karta is running on {url} for the organization {organization}. {storage}

  export KARTA_BASE_URL={url}

The organization's first key was shown when the organization was created. If you lost the key, start
with another --org to create another organization and its first key.
{demo}
API documentation: {url}/docs. Press Ctrl-C to stop."
        );
    };
    let token = token.expose();
    format!(
        r#"Karta is running on {url} for the organization {organization}. {storage}

The organization's first key has all scopes and is shown only once. In a second terminal:

  export KARTA_BASE_URL={url}
  export KARTA_API_KEY={token}
  curl $KARTA_BASE_URL/v1/whoami -H "Authorization: Bearer $KARTA_API_KEY"
{demo}
API documentation: {url}/docs. Press Ctrl-C to stop."#
    )
}

use std::{
    env,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// The argument with which this program is the bare server.
pub(crate) const FIXED: &str = "--serve-fixed";
const ANSWER: &str = r#"{"kind":"api_key"}"#;

/// A server process that prints a line of JSON with its address.
pub(crate) struct Server {
    child: Child,
    line: Value,
    _stdout: BufReader<ChildStdout>,
}

impl Server {
    pub(crate) fn karta(binary: &Path, data: &Path, bcrypt_cost: u32) -> Result<Self> {
        let mut command = Command::new(binary);
        command
            .args(["--json", "--port", "0", "--data-dir"])
            .arg(data)
            .env("KARTA_BCRYPT_COST", bcrypt_cost.to_string())
            .env_remove("RUST_LOG");
        Self::start(command)
    }

    pub(crate) fn fixed() -> Result<Self> {
        let mut command = Command::new(env::current_exe()?);
        command.arg(FIXED);
        Self::start(command)
    }

    pub(crate) fn start(mut command: Command) -> Result<Self> {
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("run cargo build --release first")?;
        let mut stdout = BufReader::new(child.stdout.take().context("no stdout")?);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        Ok(Self { child, line: serde_json::from_str(&line).context("the server did not start")?, _stdout: stdout })
    }

    pub(crate) fn address(&self) -> String {
        self.line["base_url"].as_str().unwrap_or_default().trim_start_matches("http://").to_owned()
    }

    pub(crate) fn secret(&self, name: &str) -> Result<String> {
        Ok(self.line[name].as_str().with_context(|| format!("no {name}"))?.to_owned())
    }

    pub(crate) fn number(&self, name: &str) -> Result<u64> {
        self.line[name].as_u64().with_context(|| format!("no {name}"))
    }

    pub(crate) fn resident_megabytes(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").trim().parse::<f64>()? / 1_024.0)
    }

    pub(crate) fn stop(mut self) -> Result<()> {
        Command::new("kill").arg(self.child.id().to_string()).status()?;
        self.child.wait()?;
        Ok(())
    }
}

/// Kills the server if the benchmark fails.
impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Serves a fixed response to every request, as the baseline for this machine.
pub(crate) async fn serve_fixed() -> Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let line = json!({ "base_url": format!("http://{}", listener.local_addr()?) });
    writeln!(std::io::stdout(), "{line}")?;
    axum::serve(listener, axum::Router::new().fallback(|| async { ANSWER })).await?;
    Ok(())
}

use std::{
    fmt,
    fs::File,
    io::{self, Write},
    panic::PanicHookInfo,
    process::ExitCode,
    sync::Arc,
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{ParseError, Targets, filter_fn},
    fmt::MakeWriter,
    layer::{Context, SubscriberExt},
};

use super::{metrics, scrub};

/// The level that is logged unless the directives set another.
const DEFAULT_LEVEL: &str = "info";

/// Maximum levels of targets that print bodies or headers below them, by target prefix. This is a
/// separate filter: as directives after the caller's, they would lose to a longer target such as
/// `aws_smithy_runtime::client=trace`.
const CAPS: [(&str, LevelFilter); 6] = [
    ("aws_", LevelFilter::WARN),
    ("dynoxide", LevelFilter::OFF),
    ("h2", LevelFilter::WARN),
    ("hyper", LevelFilter::WARN),
    ("lambda_", LevelFilter::INFO),
    ("rustls", LevelFilter::WARN),
];

/// The destination of log lines.
#[derive(Debug)]
pub enum Output {
    Stdout,
    Stderr,
    /// Appended at the file's position, with one write per line.
    File(File),
}

#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("invalid log filter")]
    Directives(#[from] ParseError),
    #[error("a log subscriber is already set")]
    AlreadySet(#[from] tracing::subscriber::SetGlobalDefaultError),
}

/// Sends every event of this process to `out`, scrubbed, and turns panics into events. `directives`
/// are those of `RUST_LOG` (`warn,karta_shared=debug`); without a global level, the level is
/// `info`.
///
/// Call it once per process. It replaces the panic hook, so that a failed assertion appears in the
/// log only.
pub fn init(out: Output, directives: &str) -> Result<(), InitError> {
    tracing::subscriber::set_global_default(subscriber(out, directives)?)?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// Returns the exit code of a function's process and logs a failure. An error that `main` returned
/// would be printed without scrubbing.
pub fn exit_code(route: &str, outcome: Result<(), impl std::fmt::Display>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(route, fault = %error, "startup failed");
            ExitCode::FAILURE
        }
    }
}

fn subscriber(out: Output, directives: &str) -> Result<impl Subscriber + Send + Sync, InitError> {
    let requested = EnvFilter::builder().parse(format!("{DEFAULT_LEVEL},{directives}"))?;
    let caps = Targets::new().with_default(LevelFilter::TRACE).with_targets(CAPS);
    let out = Scrubbed(Arc::new(out));
    let lines = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(true)
        .with_span_list(false)
        .with_ansi(false)
        .with_writer(out.clone())
        .with_filter(filter_fn(|metadata| metadata.target() != metrics::TARGET));
    Ok(tracing_subscriber::registry().with(requested).with(caps).with(lines).with(MetricLines(out)))
}

/// Writes metrics without the log's JSON envelope: CloudWatch expects the metric object as the
/// whole line.
struct MetricLines(Scrubbed);

impl<S: Subscriber> Layer<S> for MetricLines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == metrics::TARGET {
            event.record(&mut self.0.make_writer());
        }
    }
}

impl Visit for LogEntry<'_> {
    fn record_str(&mut self, _: &Field, line: &str) {
        self.text.extend_from_slice(line.as_bytes());
        self.text.push(b'\n');
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}

fn log_panic(info: &PanicHookInfo<'_>) {
    tracing::event!(
        target: "panic",
        Level::ERROR,
        panic = info.payload_as_str().unwrap_or("payload is not text"),
        location = info.location().map(tracing::field::display),
        thread = std::thread::current().name(),
        "panicked"
    );
}

#[derive(Clone)]
struct Scrubbed(Arc<Output>);

/// One event. It is collected before it is scrubbed, because a secret may span two writes.
struct LogEntry<'a> {
    out: &'a Output,
    text: Vec<u8>,
}

impl<'a> MakeWriter<'a> for Scrubbed {
    type Writer = LogEntry<'a>;

    fn make_writer(&'a self) -> LogEntry<'a> {
        LogEntry { out: &self.0, text: Vec::new() }
    }
}

impl Write for LogEntry<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LogEntry<'_> {
    fn drop(&mut self) {
        let text = String::from_utf8_lossy(&self.text);
        let line = scrub(&text);
        let written = match self.out {
            Output::Stdout => io::stdout().lock().write_all(line.as_bytes()),
            Output::Stderr => io::stderr().lock().write_all(line.as_bytes()),
            Output::File(file) => (&mut &*file).write_all(line.as_bytes()),
        };
        // A failed log write must not stop the work, and there is no other place to report it.
        drop(written);
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::fd::OwnedFd};

    use serde_json::Value;

    use super::*;

    const SECRETS: [&str; 6] = [
        "kt_live_AbC123SECRETsecret0123456789ABCD",
        "sk-ant-api03-SECRETsecret",
        "sk-SECRETsecret0123",
        "whsec_SECRETsecret+/=",
        "Bearer SECRETsecret",
        "eyJhbGciOiJub25lIn0.eyJTRUNSRVQ.SECRETsecret",
    ];

    /// Runs `work` with its own log and returns the lines that it wrote.
    fn logged(directives: &str, work: impl FnOnce()) -> Vec<Value> {
        let (mut reader, writer) = io::pipe().unwrap();
        let output = Output::File(OwnedFd::from(writer).into());
        tracing::subscriber::with_default(subscriber(output, directives).unwrap(), work);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert!(!text.contains("SECRET"), "{text}");
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[derive(Debug, thiserror::Error)]
    #[error("the provider rejected {0}")]
    struct ProviderError(String);

    #[test]
    fn log_line_is_flat_json_with_span() {
        let lines = logged("", || {
            let _span = tracing::info_span!("whoami", request_id = "r-1").entered();
            tracing::info!(status = 200, "answered");
        });
        let line = &lines[0];
        assert!(line["timestamp"].as_str().unwrap().ends_with('Z'));
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["message"], "answered");
        assert_eq!(line["status"], 200);
        assert_eq!(line["span"], serde_json::json!({"name": "whoami", "request_id": "r-1"}));
    }

    #[test]
    fn secrets_are_redacted_in_every_position() {
        for secret in SECRETS {
            let lines = logged("", || {
                let error = ProviderError(format!("line one\n{secret}"));
                let _span = tracing::info_span!("call", token = secret, late = tracing::field::Empty).entered();
                tracing::Span::current().record("late", secret);
                tracing::info!("said {secret}\n{secret}");
                tracing::info!(secret, quoted = format!("{secret:?}"), "in fields");
                tracing::info!(%error, "displayed");
                tracing::info!(?error, nested = ?format!("{error:?}"), "debugged");
                tracing::info!(error = &error as &dyn std::error::Error, "as an error");
            });
            assert_eq!(lines.len(), 5);
            assert!(lines.iter().all(|line| line.to_string().contains("[redacted]")));
        }
    }

    #[test]
    fn metric_is_a_separate_scrubbed_line() {
        let lines = logged("", || {
            let _span = tracing::info_span!("whoami", request_id = "r-1").entered();
            tracing::info!(target: metrics::TARGET, line = r#"{"_aws":{},"Note":"sk-SECRETsecret0123"}"#);
        });
        assert_eq!(lines, [serde_json::json!({ "_aws": {}, "Note": "sk-[redacted]" })]);
    }

    #[test]
    fn panic_is_one_scrubbed_line() {
        let (this, previous) = (std::thread::current().id(), std::panic::take_hook());
        // The hook is process-wide: other tests keep theirs.
        std::panic::set_hook(Box::new(move |info| {
            if std::thread::current().id() == this {
                log_panic(info);
            } else {
                previous(info);
            }
        }));
        for secret in SECRETS {
            let lines = logged("", || {
                std::panic::catch_unwind(|| panic!("cannot parse\n{secret}")).unwrap_err();
            });
            assert_eq!(lines.len(), 1);
            assert_eq!(lines[0]["level"], "ERROR");
            assert!(lines[0]["panic"].as_str().unwrap().contains("[redacted]"));
            assert!(lines[0]["location"].as_str().unwrap().contains("log.rs:"));
        }
    }

    #[test]
    fn bodies_are_never_logged_at_any_level() {
        let everything =
            "trace,dynoxide=trace,aws_smithy_runtime=trace,aws_smithy_runtime::client=trace,hyper::proto=trace";
        let lines = logged(everything, || {
            tracing::info!(target: "aws_smithy_runtime::client::orchestrator", "SECRET");
            tracing::debug!(target: "aws_sdk_dynamodb::operation", "SECRET");
            tracing::trace!(target: "hyper::proto::h1", "SECRET");
            tracing::trace!(target: "lambda_runtime::layers::api_response", "SECRET");
            tracing::error!(target: "dynoxide::server", "SECRET");
            tracing::warn!(target: "aws_smithy_runtime::client::retries", "kept");
            tracing::trace!("ours");
        });
        assert_eq!(lines.iter().map(|line| &line["message"]).collect::<Vec<_>>(), ["kept", "ours"]);
    }

    #[test]
    fn directives_refine_the_default() {
        let count = |directives| {
            let lines = logged(directives, || {
                tracing::info!(target: "other", "info");
                tracing::debug!(target: "mine", "debug");
            });
            lines.len()
        };
        assert_eq!([count(""), count("mine=debug"), count("warn"), count("off")], [1, 2, 0, 0]);
        assert!(matches!(subscriber(Output::Stderr, "a=b=c=d"), Err(InitError::Directives(_))));
    }
}

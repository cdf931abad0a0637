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

/// Logged unless the directives say otherwise.
const DEFAULT_LEVEL: &str = "info";

/// Prefixes of targets that print bodies or headers further down, and the level that they are held to. A filter of its own: as
/// directives after the caller's, a longer target such as `aws_smithy_runtime::client=trace` would win against them.
const CAPS: [(&str, LevelFilter); 6] = [
    ("aws_", LevelFilter::WARN),
    ("dynoxide", LevelFilter::OFF),
    ("h2", LevelFilter::WARN),
    ("hyper", LevelFilter::WARN),
    ("lambda_", LevelFilter::INFO),
    ("rustls", LevelFilter::WARN),
];

/// Where lines go.
#[derive(Debug)]
pub enum Output {
    Stdout,
    Stderr,
    /// Appended where the file stands; one write per line.
    File(File),
}

#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("the log filter cannot be read")]
    Directives(#[from] ParseError),
    #[error("a log is set up already")]
    AlreadySet(#[from] tracing::subscriber::SetGlobalDefaultError),
}

/// Sends every event of this process to `out`, scrubbed, and turns panics into events. `directives` are those of `RUST_LOG`
/// (`warn,karta_shared=debug`); without a level for all, that is `info`.
///
/// Once per process. It takes the place of the panic hook, so that a failed assertion is in the log and nowhere else.
pub fn init(out: Output, directives: &str) -> Result<(), InitError> {
    tracing::subscriber::set_global_default(subscriber(out, directives)?)?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// How a function's process ends. A failure is told in the log: returned from `main`, it would be printed past the scrubber.
pub fn exit_code(route: &str, outcome: Result<(), impl std::fmt::Display>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(route, %error, "the function ends");
            ExitCode::FAILURE
        }
    }
}

fn subscriber(out: Output, directives: &str) -> Result<impl Subscriber + Send + Sync, InitError> {
    let asked = EnvFilter::builder().parse(format!("{DEFAULT_LEVEL},{directives}"))?;
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
    Ok(tracing_subscriber::registry().with(asked).with(caps).with(lines).with(MetricLines(out)))
}

/// Writes metrics as they are: CloudWatch takes the line itself for the object that it reads.
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
        panic = info.payload_as_str().unwrap_or("a payload that is no text"),
        location = info.location().map(tracing::field::display),
        thread = std::thread::current().name(),
        "panicked"
    );
}

#[derive(Clone)]
struct Scrubbed(Arc<Output>);

/// One event: gathered whole, since a secret may lie across two writes, and scrubbed on its way out.
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
        // A log that cannot be written must not stop what it tells of, and there is no other place to say so.
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

    /// Runs `work` under a log of its own and gives what was written, a line per item.
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
    #[error("the provider refused {0}")]
    struct ProviderError(String);

    #[test]
    fn a_line_is_flat_json_with_its_span() {
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
    fn no_secret_leaves_wherever_it_stands() {
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
    fn a_metric_is_a_line_of_its_own_and_scrubbed_like_any_other() {
        let lines = logged("", || {
            let _span = tracing::info_span!("whoami", request_id = "r-1").entered();
            tracing::info!(target: metrics::TARGET, line = r#"{"_aws":{},"Note":"sk-SECRETsecret0123"}"#);
        });
        assert_eq!(lines, [serde_json::json!({ "_aws": {}, "Note": "sk-[redacted]" })]);
    }

    #[test]
    fn a_panic_is_one_scrubbed_line() {
        let (this, previous) = (std::thread::current().id(), std::panic::take_hook());
        // The hook is the process's: other tests keep the one they had.
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
    fn bodies_stay_out_whatever_the_filter_asks() {
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

//! How an error and a log line are said.
//!
//! An error is said once on stderr and, with `--log`, once in that file. In JSON the file must be understood by two kinds
//! of client: containerd takes the `msg` of the last object whose `level` is "error"; podman parses the whole file as one
//! object. So when a verb fails, its error is all that the file gets, and warnings are written only when it succeeds.

use crate::error::Error;
use crate::global::{Global, LogFormat};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// Where log lines go.
#[derive(Debug, Clone)]
pub struct Report {
    file: Option<PathBuf>,
    format: LogFormat,
    debug: bool,
    held: Arc<Mutex<Vec<u8>>>,
}

/// Collects lines until it is known how the verb ends; without a file they go out at once.
struct Sink(Report);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let report = &self.0;
        if report.file.is_some() && !report.debug {
            report.held.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        } else {
            report.append(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Report {
    /// Sets up logging as the command line asks.
    pub fn start(global: &Global) -> Report {
        let report = Report {
            file: global.log.clone(),
            format: global.log_format,
            debug: global.debug,
            held: Arc::default(),
        };
        let format = report.format;
        let level = if global.debug { log::LevelFilter::Debug } else { log::LevelFilter::Warn };
        let started = std::time::Instant::now();
        let made = env_logger::Builder::new()
            .filter_level(level)
            .target(env_logger::Target::Pipe(Box::new(Sink(report.clone()))))
            .format(move |out, record| {
                let level = record.level().as_str().to_ascii_lowercase();
                let text = match record.level() {
                    log::Level::Debug => {
                        format!("{:9.3} ms  {}", started.elapsed().as_secs_f64() * 1e3, record.args())
                    }
                    _ => record.args().to_string(),
                };
                out.write_all(line(format, &level, &text).as_bytes())
            })
            .try_init();
        drop(made);
        report
    }

    /// The verb has succeeded: what was held back may be said.
    pub fn finish(&self) {
        let held = std::mem::take(&mut *self.held.lock().unwrap_or_else(PoisonError::into_inner));
        if !held.is_empty() {
            self.append(&held);
        }
    }

    /// The verb has failed.
    pub fn error(&self, error: &Error) {
        let text = error.to_string();
        eprintln!("error: {text}");
        if self.file.is_some() {
            self.append(line(self.format, "error", &text).as_bytes());
        }
    }

    fn append(&self, bytes: &[u8]) {
        let written = match &self.file {
            Some(path) => {
                OpenOptions::new().create(true).append(true).open(path).and_then(|mut f| f.write_all(bytes))
            }
            None => std::io::stderr().write_all(bytes),
        };
        if let (Err(e), Some(path)) = (written, &self.file) {
            eprintln!("error: --log {}: {e}", path.display());
        }
    }
}

fn line(format: LogFormat, level: &str, text: &str) -> String {
    let time = humantime::format_rfc3339_nanos(SystemTime::now()).to_string();
    match format {
        LogFormat::Json => format!("{}\n", serde_json::json!({"level": level, "msg": text, "time": time})),
        LogFormat::Text => format!("{time} {level}: {text}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(file: PathBuf) -> Report {
        Report { file: Some(file), format: LogFormat::Json, debug: false, held: Arc::default() }
    }

    #[test]
    fn a_failure_is_the_only_object_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.json");
        let report = report(path.clone());
        Sink(report.clone()).write_all(line(LogFormat::Json, "warn", "early").as_bytes()).unwrap();
        report.error(&Error::NoSuchContainer("x".into()));
        let said: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(said["level"], "error");
        assert_eq!(said["msg"], "container \"x\" does not exist");
    }

    #[test]
    fn warnings_are_said_after_a_success() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.json");
        let report = report(path.clone());
        Sink(report.clone()).write_all(line(LogFormat::Json, "warn", "early").as_bytes()).unwrap();
        assert!(!path.exists());
        report.finish();
        assert!(std::fs::read_to_string(path).unwrap().contains("early"));
    }
}

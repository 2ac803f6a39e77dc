//! How an error and a log line are said.
//!
//! An error is said once on stderr and, with `--log`, once in that file. In JSON the file must be understood by two kinds
//! of client: containerd takes the `msg` of the last object whose `level` is "error"; podman parses the whole file as one
//! object. So when a verb fails, its error is all that the file gets, and warnings are written only when it succeeds.
//!
//! Besides, a checkpoint and a restart keep a [`Journal`] of all that they did.

use crate::error::Error;
use crate::global::{Global, LogFormat};
use crate::journal::Journal;
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
    journal: Option<Arc<Journal>>,
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
    /// Sets up logging as the command line asks, and a journal for a verb that keeps one.
    pub fn start(global: &Global, journal: Option<Journal>) -> Report {
        let report = Report {
            file: global.log.clone(),
            format: global.log_format,
            debug: global.debug,
            held: Arc::default(),
            journal: journal.map(Arc::new),
        };
        let format = report.format;
        let shown = if global.debug { log::LevelFilter::Debug } else { log::LevelFilter::Warn };
        let journal = report.journal.clone();
        let started = std::time::Instant::now();
        let made = env_logger::Builder::new()
            .filter_level(if journal.is_some() { log::LevelFilter::Debug } else { shown })
            .target(env_logger::Target::Pipe(Box::new(Sink(report.clone()))))
            .format(move |out, record| {
                let level = record.level().as_str().to_ascii_lowercase();
                let text = match record.level() {
                    log::Level::Debug => {
                        format!("{:9.3} ms  {}", started.elapsed().as_secs_f64() * 1e3, record.args())
                    }
                    _ => record.args().to_string(),
                };
                if let Some(journal) = &journal {
                    journal.note(&line(LogFormat::Text, &level, &text));
                }
                if record.level() <= shown {
                    out.write_all(line(format, &level, &text).as_bytes())?;
                }
                Ok(())
            })
            .try_init();
        drop(made);
        report
    }

    /// The verb has succeeded, or what is left of it is only to wait: what was held back may be said.
    pub fn finish(&self) {
        self.save_journal();
        let held = std::mem::take(&mut *self.held.lock().unwrap_or_else(PoisonError::into_inner));
        if !held.is_empty() {
            self.append(&held);
        }
    }

    /// The verb has failed.
    pub fn error(&self, error: &Error) {
        let text = error.to_string();
        if let Some(journal) = &self.journal {
            journal.note(&line(LogFormat::Text, "error", &text));
        }
        self.save_journal();
        eprintln!("error: {text}");
        if self.file.is_some() {
            self.append(line(self.format, "error", &text).as_bytes());
        }
    }

    fn save_journal(&self) {
        // A journal is for a person who looks for a reason later. That it can't be kept is no reason to fail.
        if let Some(Err(e)) = self.journal.as_deref().map(Journal::save) {
            log::warn!("{e}");
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
        Report {
            file: Some(file),
            format: LogFormat::Json,
            debug: false,
            held: Arc::default(),
            journal: None,
        }
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

//! Where the log goes.

use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::config::LogLevel;

/// The name of the log file's descriptor in an update.
pub const LOG_FD: &str = "log.file";

/// The log cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("--log-file: cannot open {path}: {source}")]
pub struct LogError {
    path: PathBuf,
    source: std::io::Error,
}

/// True once the log has a file.
static HAS_FILE: AtomicBool = AtomicBool::new(false);

/// Says why the VMM ends: in one line on stderr, and in the log where that is elsewhere.
pub fn fatal(error: &dyn Display) {
    if HAS_FILE.load(Ordering::Relaxed) {
        tracing::error!(%error, "fatal");
    }
    eprintln!("cpr-vmm: {error}");
}

/// Starts logging; the file, if there is one, is `preserved` or opened for appending.
pub fn start(
    level: LogLevel,
    path: Option<&PathBuf>,
    preserved: Option<OwnedFd>,
) -> Result<Option<Arc<File>>, LogError> {
    let file = match (path, preserved) {
        (None, _) => None,
        (Some(_), Some(fd)) => Some(File::from(fd)),
        (Some(path), None) => Some(
            OpenOptions::new()
                .append(true)
                .create(true)
                .open(path)
                .map_err(|source| LogError { path: path.clone(), source })?,
        ),
    };
    let file = file.map(Arc::new);
    HAS_FILE.store(file.is_some(), Ordering::Relaxed);
    let writer = match &file {
        Some(file) => BoxMakeWriter::new(file.clone()),
        None => BoxMakeWriter::new(std::io::stderr),
    };
    let level = match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let subscriber =
        tracing_subscriber::fmt().with_max_level(level).with_ansi(false).with_writer(writer);
    // A second start in one process (tests) keeps the first.
    let _ = tracing::subscriber::set_global_default(subscriber.finish());
    Ok(file)
}

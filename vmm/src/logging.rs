//! Where the log goes.

use std::fmt::Display;
use std::fs::{File, Metadata, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
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

/// Tells an operator something that is not an error: in one line on stderr, and in the log where
/// that is elsewhere.
pub fn notice(text: &dyn Display) {
    if HAS_FILE.load(Ordering::Relaxed) {
        tracing::warn!(%text, "notice");
    }
    eprintln!("cpr-vmm: {text}");
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
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .with_writer(writer)
        // They would go to stderr by `eprintln!`, which panics where stderr is as full as the log.
        .log_internal_errors(false);
    // A second start in one process (tests) keeps the first.
    let _ = tracing::subscriber::set_global_default(subscriber.finish());
    if let (Some(path), Some(file)) = (path, &file)
        && !names(path, file)
    {
        let path = path.display();
        tracing::warn!(%path, "--log-file names another file than the one that was handed over");
    }
    Ok(file)
}

/// Whether `path` is a name of the open `file`.
pub fn names(path: &Path, file: &File) -> bool {
    let identity = |meta: std::io::Result<Metadata>| meta.map(|meta| (meta.dev(), meta.ino())).ok();
    let named = identity(std::fs::metadata(path));
    named.is_some() && named == identity(file.metadata())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_moved_has_another_name() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        let file = File::create(&old).unwrap();
        assert!(names(&old, &file) && !names(&new, &file));
        std::fs::rename(&old, &new).unwrap();
        assert!(!names(&old, &file) && names(&new, &file));
        File::create(&old).unwrap();
        assert!(!names(&old, &file));
    }
}

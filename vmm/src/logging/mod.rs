//! Where the log goes. Logging never waits for a reader, nor for a thread that has ended or hangs.
//!
//! A line is written at once by the thread that logs it if the sink takes it, so that it is out
//! before an exec; otherwise it waits in an [`Outlet`] for the main loop.

mod outlet;
mod sink;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Display;
use std::fs::{File, Metadata, OpenOptions};
use std::io::Write;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::sys::eventfd::EventFd;
use tracing_subscriber::filter::LevelFilter;

use crate::config::LogLevel;
use outlet::Outlet;
use sink::Sink;

/// The name of the log file's descriptor in an update.
pub const LOG_FD: &str = "log.file";

/// The log cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("--log-file: cannot open {path}: {source}")]
pub struct LogError {
    path: PathBuf,
    source: std::io::Error,
}

/// Lines on their way to standard error.
static STDERR: Outlet = Outlet::new(Sink::Stderr);
/// Lines on their way to the log, where that is a file.
static FILE: OnceLock<Outlet> = OnceLock::new();
/// Written to when lines begin to wait for a reader: the main loop sees to them.
static WAKE: OnceLock<Arc<EventFd>> = OnceLock::new();

/// How long the end of the VMM waits for a reader of its last lines.
const LAST_LINES: Duration = Duration::from_millis(200);

fn put(outlet: &Outlet, lines: &[u8]) {
    if outlet.put(lines)
        && let Some(wake) = WAKE.get()
    {
        // The counter can only be full if a wake-up is coming anyway.
        let _ = wake.write(1);
    }
}

/// What `tracing` writes lines to, each with one call.
struct Lines(&'static Outlet);

impl Write for Lines {
    fn write(&mut self, lines: &[u8]) -> std::io::Result<usize> {
        put(self.0, lines);
        Ok(lines.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Says why the VMM ends: in one line on stderr, and in the log where that is elsewhere.
pub fn fatal(error: &dyn Display) {
    if FILE.get().is_some() {
        tracing::error!(%error, "fatal");
    }
    say(format_args!("cpr-vmm: {error}"));
}

/// Tells an operator something that is not an error: in one line on stderr, and in the log where
/// that is elsewhere.
pub fn notice(text: &dyn Display) {
    if FILE.get().is_some() {
        tracing::warn!(%text, "notice");
    }
    say(format_args!("cpr-vmm: {text}"));
}

/// Says something on stderr, without waiting for its reader.
pub fn say(text: std::fmt::Arguments<'_>) {
    put(&STDERR, format!("{text}\n").as_bytes());
}

/// A panic says what it is about on stderr as ever, but waits for nobody who reads it.
pub fn hook_panics() {
    std::panic::set_hook(Box::new(|info| {
        let thread = std::thread::current();
        let trace = Backtrace::capture();
        let trace = match trace.status() {
            BacktraceStatus::Captured => format!("\nstack backtrace:\n{trace}"),
            _ => String::new(),
        };
        say(format_args!("\nthread '{}' {info}{trace}", thread.name().unwrap_or("<unnamed>")));
    }));
}

/// The event to write to when lines begin to wait for their reader.
pub fn wake_by(wake: Arc<EventFd>) {
    // A second one in one process (tests) is not needed.
    let _ = WAKE.set(wake);
}

fn outlets() -> impl Iterator<Item = &'static Outlet> {
    FILE.get().into_iter().chain([&STDERR])
}

/// Descriptors to wait for until they can be written to; then [`flush`] is to be called.
pub fn waiting() -> impl Iterator<Item = BorrowedFd<'static>> {
    outlets().filter_map(Outlet::waiting)
}

/// Writes what can be written without waiting.
pub fn flush() {
    outlets().for_each(Outlet::flush);
}

/// Before the end: gives a slow reader a moment for the last lines.
pub fn finish() {
    outlets().for_each(|outlet| outlet.drain(LAST_LINES));
}

/// Opens the file for appending. A FIFO must not make anybody wait, with or without a reader.
fn open(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).custom_flags(libc::O_NONBLOCK);
    match options.open(path) {
        // A FIFO without a reader: that one may still come.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => options.read(true).open(path),
        result => result,
    }
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
        (Some(path), None) => {
            Some(open(path).map_err(|source| LogError { path: path.clone(), source })?)
        }
    };
    let file = file.map(Arc::new);
    let outlet = match &file {
        Some(file) => FILE.get_or_init(|| Outlet::new(Sink::File(file.clone()))),
        None => &STDERR,
    };
    outlet.reserve();
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
        .with_writer(move || Lines(outlet))
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
